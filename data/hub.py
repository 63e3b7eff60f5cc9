"""Files of a model: from a local folder, or from the hub by name."""
import re
from pathlib import Path


FILES = "config.json, pytorch_model.bin and tokenizer.json"


class BadInput(Exception):
    """What the user gave cannot be used. The message is one line: the value and the remedy."""


def quietly(call, *args, **kwargs):
    """Calls the hub without its retry messages and bars; we say once, in one line, what failed."""
    import datasets
    import huggingface_hub
    huggingface_hub.logging.set_verbosity_error()
    huggingface_hub.utils.disable_progress_bars()
    datasets.disable_progress_bars()
    return call(*args, **kwargs)


def fetch(name, filename, optional=False):
    """Path of one file of a model.

    name: a local folder, or a hub name such as google-bert/bert-base-uncased.
    Returns None if the file is not there and `optional`; raises BadInput if it is not optional,
    if there is no such model, or if the hub cannot be reached and the file is not in its cache.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    folder, lacking = Path(name), f"{name}: there is no {filename} in it"
    if folder.is_dir():
        path = folder / filename
        if path.is_file() or optional:
            return path if path.is_file() else None
        raise BadInput(f"{lacking}; want a folder with {FILES}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise BadInput(f"{name}: neither a folder here nor a hub name like "
                       f"google-bert/bert-base-uncased; want one with {FILES}")
    try:
        return Path(quietly(hf_hub_download, str(name), filename))
    except Exception as error:  # many kinds, of several network libraries; none is swallowed
        absent = isinstance(error, EntryNotFoundError)
        if absent and not isinstance(error, LocalEntryNotFoundError):     # Local: no connection
            if optional:
                return None
            raise BadInput(f"{lacking}; want a model with {FILES}") from error
        raise BadInput(f"{filename} of the model {name} could not be had ({reason(error)}); check "
                       f"the name and the network, or give a folder with {FILES}") from error


def reason(error):
    """The first line of a library's message, short enough for one line of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:120]
