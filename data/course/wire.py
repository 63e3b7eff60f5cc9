"""Messages between the grader and the process of a submission: a length, then the content."""
import io
import struct

import numpy as np
import torch
from torch import nn

MAX_BYTES = 2**30


def receive(connection):
    """Return the next message, bytes, or None if the connection is closed."""
    header = receive_exactly(connection, 8)
    if header is None:
        return None
    size, = struct.unpack("<Q", header)
    if size > MAX_BYTES:
        raise ValueError(f"a message of {size} bytes")
    return receive_exactly(connection, size)


def receive_exactly(connection, size):
    content = bytearray()
    while len(content) < size:
        part = connection.recv(min(size - len(content), 2**20))
        if not part:
            return None
        content += part
    return bytes(content)


def send(connection, content):
    connection.sendall(struct.pack("<Q", len(content)) + content)


def send_tensors(connection, value):
    """Send tensors, numbers and texts in lists, tuples and dicts."""
    file = io.BytesIO()
    torch.save(detached(value), file)
    send(connection, file.getvalue())


def load_tensors(content):
    """Return what send_tensors has sent. No code of the message runs: it is not trusted."""
    return torch.load(io.BytesIO(content), weights_only=True)


def detached(value):
    """Return a tree of lists, tuples and dicts with every tensor without its graph."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, (list, tuple)):
        parts = [detached(x) for x in value]
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, dict):
        return {key: detached(x) for key, x in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def flatten(value):
    """Return the tensors of a tree in order, also those of modules."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, nn.Module):
        return [*value.parameters(), *value.buffers()]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for x in value for tensor in flatten(x)]
    return []
