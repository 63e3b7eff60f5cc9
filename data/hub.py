"""Files of a model: from a local folder, or from the Hugging Face hub by name."""
import errno
import json
import os
import re
from pathlib import Path

import datasets
import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from data.errors import UserError, short_message
from data.files import is_folder

DISK_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENOTDIR,
               errno.EISDIR, errno.EEXIST, getattr(errno, "EDQUOT", None)} - {None}
FILES = "config.json, pytorch_model.bin and tokenizer.json"


def silenced(call, *args, **kwargs):
    """Call a hub function without its retry messages and progress bars: we report failures."""
    huggingface_hub.logging.set_verbosity_error()
    huggingface_hub.utils.disable_progress_bars()
    datasets.disable_progress_bars()
    return call(*args, **kwargs)


def check_disk(error, is_local=False):
    """Raise UserError if it was the cache's disk that made a library fail, or a UserError below.

    is_local: nothing was to be downloaded, so that an unreadable file is one of the cache.
    """
    while error is not None:
        if isinstance(error, UserError):
            raise error
        is_damaged = isinstance(error, (json.JSONDecodeError, EOFError)) or (
            type(error).__name__.startswith("Arrow")) or (
            isinstance(error, OSError) and "read" in str(error) and error.errno is None)
        if is_damaged and is_local:
            raise UserError(f"The cache {datasets.config.HF_CACHE_HOME} is damaged "
                            f"({short_message(error)}). Try to delete it, or set HF_HOME to "
                            "another folder") from error
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise UserError(f"The cache {datasets.config.HF_CACHE_HOME} must be writable, got "
                            f"{short_message(error)}. Try to free some space, or set HF_HOME to "
                            "another folder") from error
        error = error.__cause__ or error.__context__


def cached(call, *args, **kwargs):
    """Call a function of `datasets` that writes to its cache. Raises UserError if the disk fails.
    """
    try:
        return silenced(call, *args, **kwargs)
    except Exception as error:
        check_disk(error, is_local=True)
        raise


def fetch(name, filename, optional=False):
    """Return the path of one file of a model.

    name: a local folder, or a hub name such as google-bert/bert-base-uncased. Returns None if the
    file does not exist and `optional` is set. Raises UserError if the file is required, if there is
    no such model, or if the hub cannot be reached and the file is not in the local cache.
    """
    if is_folder(name):
        path = Path(name) / filename
        if path.is_file():
            return path
        if optional:
            return None
        inside = sorted(str(path.parent) for path in Path(name).glob(f"*/{filename}"))
        better = " or ".join(inside[:3]) or f"a folder with {FILES}"
        if any(Path(name).glob("*.state")):
            better = "the command of this run again: it is not finished"
        raise UserError(f"{name}: there is no {filename} in it. Try {better}")
    if os.path.isfile(name) or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        better = f"one with {FILES}"
        if str(name).startswith("bert-"):       # how the hub called them until 2024
            better = f"google-bert/{name}"
        elif os.path.isfile(name):
            better = f"its folder, {Path(name).parent}"
        raise UserError(f"{str(name)[:100]}: neither a folder here nor a hub name like "
                        f"google-bert/bert-base-uncased. Try {better}")
    try:
        return Path(silenced(huggingface_hub.hf_hub_download, str(name), filename))
    except Exception as error:  # many kinds, of several network libraries; none is swallowed
        check_disk(error)
        # LocalEntryNotFoundError is a subclass that means "no connection".
        exists_not = isinstance(error, EntryNotFoundError)
        exists_not = exists_not and not isinstance(error, LocalEntryNotFoundError)
        # without a network the cache knows which files a model does not have
        known = huggingface_hub.try_to_load_from_cache(str(name), filename)
        if optional and (exists_not or known is huggingface_hub._CACHED_NO_EXIST):
            return None
        if exists_not:
            raise UserError(f"{name}: there is no {filename} in it. Try a model with {FILES}"
                            ) from error
        raise UserError(f"Could not download {filename} of the model {name}, which is no folder "
                        f"here ({short_message(error)}). Check the name and the network, or try a "
                        f"folder with {FILES}") from error
