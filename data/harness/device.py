"""Device, precision, threads and memory."""
import sys
import time

import torch
from torch.overrides import TorchFunctionMode

from data.errors import UserError, short_message


def pick_device(name):
    """Return a torch.device; auto takes the best available. Raises UserError for a GPU that this
    build of PyTorch cannot use, such as one that is too old for it.
    """
    if name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
        if torch.cuda.is_available():
            name = "cuda"
    device = torch.device(name)
    try:
        torch.ones(1, device=device).sum().item()
    except RuntimeError as error:
        raise UserError(f"--device must be one that PyTorch {torch.__version__} can use, got "
                        f"{name} ({short_message(error)}). Try --device cpu, or another build of "
                        "PyTorch") from error
    return device


def device_name(device):
    """Describe the hardware of a run."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{device.type}, {torch.get_num_threads()} threads"


def set_threads(threads):
    """Use so many CPU threads; 0 leaves the choice to PyTorch."""
    if threads:
        torch.set_num_threads(threads)


def has_bf16(device):
    """Whether the hardware computes faster in bfloat16 than in fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        # AVX512-BF16 doubles the speed on AMD. On Intel it is slower than fp32 (a training step of
        # MiniLM takes 1.5 times as long), and only AMX is faster.
        is_intel = "Intel" in features.get("cpu_name", "")
        return bool(features.get("amx_bf16") or features.get("avx512_bf16") and not is_intel)
    return False


def autocast(device, enabled):
    """Return a context that computes in bfloat16 where that is enabled and supported."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and has_bf16(device))


class SkipInit(TorchFunctionMode):
    """A context in which new modules do not initialize their weights: what they do with
    torch.nn.init is left out. It takes most of the time in which a network is built.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", "") != "torch.nn.init":
            return function(*args, **kwargs or {})


def to_device(device, batch):
    """Move a batch: (inputs of the network, labels or None)."""
    if device.type == "cuda":       # pinned memory is copied while the GPU computes
        batch = {name: x.pin_memory() for name, x in batch.items()}
    non_blocking = device.type == "cuda"
    inputs = {name: x.to(device, non_blocking=non_blocking) for name, x in batch.items()}
    labels = inputs.pop("labels", None)
    return inputs, labels


def synchronize(device):
    """Wait until a GPU has finished its work, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device):
    """Return how many bytes this process has used at most: with CUDA of the GPU's memory, else of
    main memory. None on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak        # bytes there, kB on Linux


def product_speed(device, bf16):
    """Measure the operations per second of a large matrix product, two for each multiply-add."""
    # on a GPU so large that starting the product takes no time beside it
    rows, inner, columns = (1024, 768, 3072) if device.type == "cpu" else (8192, 8192, 8192)
    # ones, not random numbers: the run that asks must not get others than without it
    a, b = torch.ones(rows, inner, device=device), torch.ones(inner, columns, device=device)
    times = []
    with torch.no_grad(), autocast(device, bf16):
        for _ in range(4):                                          # the first warms up
            synchronize(device)
            start = time.perf_counter()
            a @ b
            synchronize(device)
            times.append(time.perf_counter() - start)
    return 2 * rows * inner * columns / min(times)
