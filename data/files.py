"""Files that are there whole or not at all, and files of tensors that carry no code."""
import contextlib
import json
import os

from .hub import BadInput, reason


def write(path, save):
    """save(file) into a file that appears under its name when it is whole, or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:        # RuntimeError: of torch.save, for a full disk
        with contextlib.suppress(OSError):
            part.unlink()
        raise BadInput(f"{path}: cannot be written ({reason(error)}); what was there before is "
                       "intact; want more space, or another --out") from error


def write_text(path, text):
    write(path, lambda file: file.write(text.encode()))


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_tensors(path, tensors):
    """Tensors, in dicts with whatever else is plain."""
    import torch
    write(path, lambda file: torch.save(tensors, file))


def read_tensors(path, remedy="download or save it again"):
    """What a file of tensors holds. Runs no code of it. Raises BadInput with the remedy."""
    import torch
    try:
        if path.suffix == ".safetensors":
            return read_safetensors(path.read_bytes())
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated, no checkpoint, or carrying code
        raise BadInput(f"{path}: not a file of tensors alone ({type(error).__name__}); {remedy}"
                       ) from error


def read_safetensors(data):
    """{name: tensor} of a file's bytes: the header's length, 8 bytes; the header, JSON; numbers."""
    import torch
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
    begin = 8 + int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8:begin]), {}
    for name, of in header.items():
        if name != "__metadata__":
            low, high = of["data_offsets"]
            numbers = torch.frombuffer(bytearray(data[begin + low:begin + high]),
                                       dtype=kinds[of["dtype"]])
            tensors[name] = numbers.view(of["shape"])
    return tensors
