"""What one operation of torch costs a GPU, from its shapes: arithmetic, and bytes that pass through memory."""

from typing import NamedTuple

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class OperationCost(NamedTuple):
    """The cost of one operation.

    Attributes:
        flops: multiplications and additions of a convolution or matrix product; 0 for everything else.
        bytes: size of its inputs and outputs.
        fusible: whether a compiler can merge it into a neighbour, so that its bytes do not pass through memory.
    """

    flops: int
    bytes: int
    fusible: bool


def operation_cost(function: OpOverload, args: tuple, kwargs: dict, result: object) -> OperationCost | None:
    """Return what an operation costs, or None if it starts no kernel: a view, or memory without values.

    Args:
        function: as a torch dispatch mode receives it, with its arguments and its result.
    """
    name = function.name()
    if function.namespace != "aten" or function.is_view or name.startswith("aten::empty"):
        return None
    flops = _flops(function, args, kwargs, result)
    tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    # A norm needs the statistics of its input before it can begin, so that input passes through memory.
    return OperationCost(flops, size, fusible=flops == 0 and "norm" not in name)


def _flops(function: OpOverload, args: tuple, kwargs: dict, result: object) -> int:
    if function.name() == "aten::convolution_backward":
        # torch's own counter ignores the groups of a convolution here.
        gradient, _, weight, *_, wanted = args
        return sum(wanted[:2]) * 2 * gradient.numel() * weight[0].numel()
    count = flop_registry.get(function._overloadpacket)
    return count(*args, **kwargs, out_val=result) if count else 0
