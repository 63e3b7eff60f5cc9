"""Atomic file writes, and files of tensors that carry no code."""
import contextlib
import json
import os

import torch

from data.errors import UserError, short_message


def write_atomically(path, save):
    """Call save(file) on a temporary file, then rename it: the path is complete or untouched."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:        # torch.save raises RuntimeError on a full disk
        with contextlib.suppress(OSError):
            part.unlink()
        raise UserError(f"{path} cannot be written ({short_message(error)}). The earlier file is "
                        "intact. Free some space, or try another --out") from error


def write_text(path, text):
    write_atomically(path, lambda file: file.write(text.encode()))


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
    except Exception as error:  # truncated, not a checkpoint, or carrying code
        raise UserError(f"{path} is not a file of tensors ({type(error).__name__}). {remedy}"
                        ) from error


def read_safetensors(content):
    """Return {name: tensor} of a file: length of the header (8 bytes), header (JSON), data."""
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
              "I64": torch.int64}
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        low, high = entry["data_offsets"]
        raw = bytearray(content[begin + low:begin + high])
        flat = torch.frombuffer(raw, dtype=dtypes[entry["dtype"]])
        tensors[name] = flat.view(entry["shape"])
    return tensors
