"""`torch.cuda` and the parts of torch that ask for a GPU, as they answer on a machine with GPUs."""

import os
import time
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import distributed
from torch.profiler import ProfilerActivity
from torch.utils import checkpoint

MEMORY = 16 * 2**30
NAME, CAPABILITY = "NVIDIA A100-SXM4-40GB", (8, 0)
current = 0  # the device that this process has set
sync_debug_mode: int | str = "default"  # as `torch.cuda.set_sync_debug_mode` has set it

_nccl: dict = {}  # group: whether it stands for one of NCCL; None is the default group


def count() -> int:
    """Return the number of GPUs that this process sees."""
    return int(os.environ.get("STAND_IN_GPUS", "1"))


def _uuid(index: int) -> str:
    """Return which of the node's GPUs a process sees under an index.

    With STAND_IN_BOUND, each rank sees only its own, under index 0, as under `srun --gpus-per-task=1`.
    """
    if "STAND_IN_BOUND" in os.environ:
        return f"GPU-{os.environ['RANK']}"
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count())))
    return f"GPU-{chosen.split(',')[index]}"


def largest_tensor() -> int:
    """Return the bytes of the largest tensor that can be allocated."""
    return int(os.environ.get("STAND_IN_LARGEST", MEMORY))


class Stream:
    """A stream whose work is always done."""

    stream_id, cuda_stream, priority = 0, 0, 0

    def __init__(self, device=None, priority=0, **_):
        self.device = existing(device)

    def wait_stream(self, stream):
        assert isinstance(stream, Stream)

    def wait_event(self, event):
        assert isinstance(event, Event)

    def record_event(self, event=None):
        return event or Event()

    def query(self):
        return True

    def is_capturing(self):
        return False

    def synchronize(self):
        pass


class Event:
    """An event that has happened when it is recorded."""

    def __init__(self, enable_timing=False, blocking=False, interprocess=False):
        self.seconds = 0.0

    def record(self, stream=None):
        self.seconds = time.perf_counter()

    def elapsed_time(self, later):
        return (later.seconds - self.seconds) * 1e3

    def wait(self, stream=None):
        pass

    def query(self):
        return True

    def synchronize(self):
        pass


def existing(device=None) -> torch.device:
    if isinstance(device, int):
        device = torch.device("cuda", device)
    device = torch.device(device or "cuda")
    index = current if device.index is None else device.index
    if device.type != "cuda" or index >= count():
        raise RuntimeError(f"CUDA error: invalid device ordinal ({device}, {count()} devices)")
    return torch.device("cuda", index)


def _set_device(device) -> None:
    global current
    current = existing(device).index


def _set_sync_debug_mode(mode) -> None:
    global sync_debug_mode
    sync_debug_mode = mode


@contextmanager
def _in_device(device):
    before = current
    _set_device(device)
    try:
        yield
    finally:
        _set_device(before)


@contextmanager
def _in_stream(stream):
    assert stream is None or isinstance(stream, Stream)
    yield


def _properties(device=None) -> SimpleNamespace:
    index = existing(device).index
    return SimpleNamespace(
        name=NAME,
        uuid=_uuid(index),
        total_memory=MEMORY,
        major=CAPABILITY[0],
        minor=CAPABILITY[1],
        multi_processor_count=108,
        L2_cache_size=40 * 2**20,
    )


def _checked(answer):
    """Return a function that refuses a device that does not exist, and else answers."""

    def asked(device=None, *_, **__):
        existing(device)
        return answer

    return asked


def replace_cuda() -> None:
    """Replace what has no GPU to answer for it."""
    default = Stream()
    answers = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "_lazy_call": lambda call, **_: call(),
        "_is_in_bad_fork": lambda: False,
        "device_count": count,
        "current_device": lambda: current,
        "set_device": _set_device,
        "device": _in_device,
        "Stream": Stream,
        "Event": Event,
        "stream": _in_stream,
        "current_stream": _checked(default),
        "default_stream": _checked(default),
        "synchronize": _checked(None),
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "get_device_properties": _properties,
        "get_device_name": _checked(NAME),
        "get_device_capability": _checked(CAPABILITY),
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": _checked((MEMORY, MEMORY)),
        "set_sync_debug_mode": _set_sync_debug_mode,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device="cuda": torch.get_rng_state(),
        "set_rng_state": lambda state, device="cuda": None,
    }
    counted = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")
    answers |= dict.fromkeys(counted, _checked(2**20))
    answers |= dict.fromkeys(("reset_peak_memory_stats", "reset_max_memory_allocated"), _checked(None))
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = lambda *_: 0
    accelerator = {
        "is_available": lambda: True,
        "current_accelerator": lambda check_available=False: torch.device("cuda"),
        "device_count": count,
        "current_device_index": lambda: current,
        "set_device_index": _set_device,
        "current_stream": _checked(default),
        "synchronize": _checked(None),
        "empty_cache": lambda: None,
    }
    for name, answer in accelerator.items():
        setattr(torch.accelerator, name, answer)
    _replace_autocast()
    _replace_checkpointing()
    _replace_profiler()
    _replace_nccl()


def _replace_autocast() -> None:
    """Let autocast and the scaler of "cuda" be those of the CPU, whose operations run."""

    def on_cpu(function):
        def call(*args, **kwargs):
            def moved(value):
                return "cpu" if isinstance(value, str) and value.startswith("cuda") else value

            return function(*map(moved, args), **{name: moved(value) for name, value in kwargs.items()})

        return call

    for kind in (torch.amp.autocast, torch.amp.GradScaler):
        kind.__init__ = on_cpu(kind.__init__)
    for name in ("is_autocast_enabled", "get_autocast_dtype"):
        setattr(torch, name, on_cpu(getattr(torch, name)))


def _replace_checkpointing() -> None:
    """Let checkpointed activations be compared by shape and dtype, and not by device.

    torch notes a tensor's device where autograd saves it, inside an operation. There the stand-in does not see it yet.
    """
    checkpoint._allowed_determinism_checks_to_fns["default"] = lambda tensor: {
        "shape": tensor.shape,
        "dtype": tensor.dtype,
    }


def _replace_profiler() -> None:
    """Let a profile of the GPU's kernels be one of the process alone: there are no kernels."""
    begin = torch.profiler.profile.__init__

    def init(self, *args, activities=None, **kwargs):
        begin(self, *args, activities=[ProfilerActivity.CPU], **kwargs)

    torch.profiler.profile.__init__ = init


def _replace_nccl() -> None:
    begin, begin_group = distributed.init_process_group, distributed.new_group

    def init_process_group(backend=None, *args, device_id=None, **kwargs):
        begin(_without_nccl(backend), *args, **kwargs)
        _nccl[None] = backend == "nccl"

    def new_group(ranks=None, timeout=None, backend=None, *args, device_id=None, **kwargs):
        group = begin_group(ranks, timeout, _without_nccl(backend), *args, **kwargs)
        _nccl[group] = _nccl[None] if backend is None else backend == "nccl"
        return group

    distributed.init_process_group, distributed.new_group = init_process_group, new_group
    distributed.is_nccl_available = lambda: True


def _without_nccl(backend: str | None) -> str | None:
    return "gloo" if backend == "nccl" else backend


def is_nccl(group) -> bool:
    """Return whether a group, None for the default one, was asked to use NCCL."""
    return _nccl.get(group, _nccl.get(None, False))
