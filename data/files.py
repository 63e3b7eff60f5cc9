"""Atomic file writes, text in UTF-8, and files of tensors that carry no code."""
import contextlib
import errno
import hashlib
import json
import os
import pickle
from pathlib import Path

import torch

from data.errors import UserError, short_message


def is_folder(path):
    """Whether a path is a folder. A name that is too long is none; what may not be entered raises
    PermissionError.
    """
    try:
        return Path(path).is_dir()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def write_atomically(path, save):
    """Call save(file) on a temporary file, then rename it: the path is complete or untouched."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)                # a link would lead elsewhere
        with part.open("xb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:        # torch.save raises RuntimeError on a full disk
        raise UserError(f"{path} cannot be written ({short_message(error)}). Nothing was "
                        "replaced. Free some space, or try another folder") from error
    finally:
        with contextlib.suppress(OSError):          # also after Ctrl-C
            part.unlink(missing_ok=True)


def write_text(path, text):
    write_atomically(path, lambda file: file.write(text.encode()))


def read_text(path):
    """Return the text of a file in UTF-8. Raises UserError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must be UTF-8, got {short_message(error)}. Try to download or "
                        "save it again") from error


def read_json(path, remedy="Try to download or save it again"):
    """Return the dict that a JSON file holds. Raises UserError."""
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({short_message(error)}). {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, got {str(value)[:40]}. {remedy}")
    return value


def file_digest(path):
    """Return a hash of a file, 16 characters."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_tensors(path, tensors):
    """Write a dict of tensors and plain values."""
    write_atomically(path, lambda file: torch.save(tensors, file))


def read_tensors(path, remedy="Try to download or save it again"):
    """Read a file of tensors without running any code it may contain. Raises UserError."""
    try:
        if path.suffix == ".safetensors":
            return read_safetensors(path.read_bytes())
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not a file of tensors, as torch.save(model.state_dict(), ...) "
                        f"writes it: it is damaged, or holds objects of Python. {remedy}"
                        ) from error
    except Exception as error:  # truncated, not a checkpoint
        raise UserError(f"{path} is not a file of tensors ({type(error).__name__}). {remedy}"
                        ) from error


def read_safetensors(content):
    """Return {name: tensor} of a file: length of the header (8 bytes), header (JSON), data."""
    dtypes = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16,
              "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16,
              "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    header.pop("__metadata__", None)
    tensors = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in dtypes:
            raise UserError(f"{name} must be one of {', '.join(dtypes)}, got {entry['dtype']}. Try "
                            "to save the model in fp32")
        low, high = entry["data_offsets"]
        if low != end:
            raise ValueError("tensors overlap")
        end = high
        raw = bytearray(content[begin + low:begin + high])
        dtype = dtypes[entry["dtype"]]
        flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        tensors[name] = flat.view(entry["shape"])
    if begin + end != len(content):
        raise ValueError("the length is wrong")
    return tensors
