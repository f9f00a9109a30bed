"""Lets tensors say that they are on "cuda" when they were made or moved there, although all are on the CPU.

A tensor carries the device that it stands for. Results of an operation stand for the device of its arguments. Results
that this mode does not see, e.g. the gradients that autograd makes, stand for no device, and mix with any.
"""

import warnings

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

from tests.cuda_stand_in import torch_cuda

_STANDS_FOR = "_stands_for"  # attribute of a tensor: "cuda" or "cpu"
_DEVICE, _GRAD, _IS_CUDA = Tensor.device.__get__, Tensor.grad.__get__, Tensor.is_cuda.__get__
_SET_DATA = Tensor.data.__set__
# Operations that read a number, or whose result's shape depends on numbers.
_READS = {
    "item",
    "tolist",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "nonzero",
    "masked_select",
    "unique",
    "equal",
}
_FROM_NUMBERS = {"tensor", "new_tensor", "as_tensor"}  # make a tensor on the CPU and copy it
# Operations that take tensors of both devices.
_BETWEEN_DEVICES = {"copy_", "_foreach_copy_", "to", "__setitem__", "__getitem__", "__set__", "type_as", "is_set_to"}


def stands_for(tensor: Tensor) -> str | None:
    """Return "cuda", "cpu", or None where nothing is known."""
    return tensor.__dict__.get(_STANDS_FOR)


class Devices(TorchFunctionMode):
    """Runs on the CPU what is asked of a GPU, and remembers which tensor stands for which device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if torch_cuda.sync_debug_mode == "warn" and _waits(name, args, kwargs):
            # At the line that calls the operation, as torch does.
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)
        if function == _DEVICE:
            real = function(*args)
            is_cuda = real.type == "cpu" and stands_for(args[0]) == "cuda"
            return torch.device("cuda", torch_cuda.current) if is_cuda else real
        if function == _IS_CUDA:
            return stands_for(args[0]) == "cuda"
        if name == "get_device" and stands_for(args[0]) == "cuda":
            return torch_cuda.current
        if function == _GRAD:
            return _mark(function(*args), stands_for(args[0]))
        if function == _SET_DATA:
            function(*args)
            _mark(args[0], stands_for(args[1]))
            return None
        if name == "is_pinned":
            return bool(args[0].__dict__.get("_pinned"))
        if name in ("cuda", "cpu"):
            function, name, args = Tensor.to, "to", (args[0], name, *args[1:])
        if name == "to":
            args, kwargs, device = _without_device(args, kwargs)
            return _converted(args[0], function(*args, **kwargs), device or stands_for(args[0]))
        return self._run(function, name, args, kwargs)

    def _run(self, function, name: str, args: tuple, kwargs: dict):
        pinned, wanted = kwargs.pop("pin_memory", False), kwargs.get("device")
        if wanted is not None:
            wanted = torch.device(f"cuda:{wanted}" if isinstance(wanted, int) else wanted)
            if wanted.type == "cuda":
                torch_cuda.existing(wanted)
                kwargs["device"] = "cpu"
        given = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        found = {stands_for(tensor) for tensor in given}
        if name not in _BETWEEN_DEVICES and "cuda" in found:
            strangers = [tensor for tensor in given if stands_for(tensor) == "cpu" and tensor.dim()]
            if strangers:
                raise RuntimeError(f"Expected all tensors to be on the same device: {name} gets one on the CPU")
        result = function(*args, **kwargs)
        if wanted is not None:
            device = wanted.type
        elif "cuda" in found:
            device = "cuda"
        else:
            device = None if None in found else "cpu"
        if isinstance(result, (Tensor, tuple, list, dict)):
            same = {id(tensor) for tensor in given}
            for leaf in tree_iter(result):
                if isinstance(leaf, Tensor) and id(leaf) not in same:
                    _mark(leaf, device)
                    leaf.__dict__.update({"_pinned": True} if pinned else {})
        return result


def _waits(name: str, args: tuple, kwargs: dict) -> bool:
    """Return whether an operation of Python makes the host wait for a GPU; operations of libraries are not seen."""
    given = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
    on_gpu = [stands_for(tensor) == "cuda" for tensor in given]
    if name in _FROM_NUMBERS:
        return any(on_gpu) or str(kwargs.get("device", "")).startswith("cuda")
    if name in ("to", "cpu", "cuda", "copy_") and not kwargs.get("non_blocking") and True not in args[1:]:
        source, target = (args[1], args[0]) if name == "copy_" else (args[0], None)
        device = stands_for(target) if name == "copy_" else _without_device(args, kwargs)[2] if name == "to" else name
        return {stands_for(source), device} == {"cuda", "cpu"}
    if name in ("__getitem__", "__setitem__"):  # a mask has to be counted; an index on the CPU has to be copied
        index = [leaf for leaf in tree_iter(args[1]) if isinstance(leaf, Tensor) and leaf.dim()]
        return on_gpu[0] and any(leaf.dtype == torch.bool or stands_for(leaf) != "cuda" for leaf in index)
    return name in _READS and any(on_gpu)


def _converted(tensor: Tensor, result: Tensor, device: str | None) -> Tensor:
    """Return the result of `Tensor.to`: a new tensor where the device changes, as the device's memory is another."""
    if result is tensor:
        if stands_for(tensor) == device:
            return tensor
        result = tensor.clone(memory_format=torch.preserve_format)
    return _mark(result, device)


def _mark(tensor: Tensor | None, device: str | None) -> Tensor | None:
    if tensor is None:
        return None
    if device == "cuda" and tensor.numel() * tensor.element_size() > torch_cuda.largest_tensor():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than the stand-in allows.")
    if device is None:
        tensor.__dict__.pop(_STANDS_FOR, None)
    else:
        tensor.__dict__[_STANDS_FOR] = device
    return tensor


def _without_device(args: tuple, kwargs: dict) -> tuple[tuple, dict, str | None]:
    """Return the arguments of `Tensor.to` with the CPU for a device, and the type of the device that they named."""
    device, rest = kwargs.get("device"), list(args[1:])
    if rest and isinstance(rest[0], Tensor):
        device, rest[0] = stands_for(rest[0]) or "cpu", rest[0].dtype
    elif rest and isinstance(rest[0], (str, int, torch.device)) and not isinstance(rest[0], bool):
        device = rest[0]
    if device is None:
        return args, kwargs, None
    device = torch.device(f"cuda:{device}" if isinstance(device, int) else device)
    if device.type == "cuda":
        torch_cuda.existing(device)
    if device.type in ("cuda", "cpu"):
        if "device" in kwargs:
            kwargs["device"] = "cpu"
        elif not isinstance(args[1], Tensor):
            rest[0] = "cpu"
    return (args[0], *rest), kwargs, device.type


def _pinned(tensor: Tensor, device=None) -> Tensor:
    assert stands_for(tensor) != "cuda", "only memory of the CPU can be pinned"
    copy = tensor.clone(memory_format=torch.preserve_format)
    copy.__dict__.update({_STANDS_FOR: "cpu", "_pinned": True})
    return copy


def _record_stream(tensor: Tensor, stream: torch_cuda.Stream) -> None:
    assert stands_for(tensor) == "cuda" and isinstance(stream, torch_cuda.Stream)


def follow_devices() -> None:
    """Follow the devices of all tensors in this thread from now on."""
    # On the class: a thread of the DataLoader pins, and torch checks the type of the stream before any mode is asked.
    Tensor.pin_memory, Tensor.record_stream = _pinned, _record_stream
    mode = Devices()
    mode.__enter__()
    backward = torch.autograd._engine_run_backward

    def backward_in_mode(*args, **kwargs):
        with mode:  # it is off inside `Tensor.backward`, and the hooks of autograd make tensors too
            return backward(*args, **kwargs)

    torch.autograd._engine_run_backward = backward_in_mode
    _watch_collectives()


def _watch_collectives() -> None:
    """Let collectives refuse tensors of the CPU, as NCCL does."""
    from torch import distributed

    def watched(function):
        def call(*args, **kwargs):
            for leaf in tree_iter((args, kwargs)):
                if isinstance(leaf, Tensor) and stands_for(leaf) == "cpu" and torch_cuda.is_nccl(kwargs.get("group")):
                    raise RuntimeError(f"No backend type associated with device type cpu ({function.__name__})")
            return function(*args, **kwargs)

        return call

    for name in (
        "all_reduce",
        "broadcast",
        "reduce",
        "all_gather",
        "all_gather_into_tensor",
        "reduce_scatter",
        "reduce_scatter_tensor",
    ):
        setattr(distributed, name, watched(getattr(distributed, name)))
