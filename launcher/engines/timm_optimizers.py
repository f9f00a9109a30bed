"""Optimizers of timm: LAMB and LARS, which large batches are trained with, Lion, and any other as ``timm:NAME``.

A checkpoint holds tensors of a parameter's shape and the number of updates. Whether that is all an optimizer keeps is
tried on parameters of several shapes before training. What is more, such as the factored moments of Adafactor, is
refused.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers
from torch import Tensor, nn
from torch.optim import Optimizer

from recipes.errors import UserError
from recipes.sections import OptimizerSettings

_PREFIX = "timm:"
_STEP = "step"  # the name under which optimizers count their updates
# A bias, a convolution, and a matrix that is large enough for optimizers that factor the moments of large matrices.
_PROBES = ((8,), (8, 4, 3, 3), (128, 128))
Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class UpdateCounters:
    """Where an optimizer counts its updates, so that a resumed run can set the count.

    Attributes:
        of_parameter: the count in the state of a parameter, an int or a tensor; None: there is none.
        of_group: the count in each parameter group, likewise.
    """

    of_parameter: int | Tensor | None
    of_group: int | Tensor | None

    def set(self, optimizer: Optimizer, updates: int) -> None:
        """Set every count of an optimizer whose other state has been loaded."""
        for group in optimizer.param_groups:
            if self.of_group is not None:
                group[_STEP] = _like(self.of_group, updates)
            for parameter in group["params"]:
                if self.of_parameter is not None and optimizer.state.get(parameter):
                    optimizer.state[parameter][_STEP] = _like(self.of_parameter, updates)


def _like(count: int | Tensor, updates: int) -> int | Tensor:
    return torch.full_like(count, updates) if isinstance(count, Tensor) else updates


def make_timm_optimizer(groups: Groups, settings: OptimizerSettings) -> tuple[Optimizer, UpdateCounters]:
    """Return the optimizer of timm that `settings.name` says, over these groups.

    It gets the recipe's learning rate, and those of betas, eps and momentum that it has. Everything else is timm's
    default, except that LAMB's own clipping of the gradient is off: `optimizer.clip_grad` clips for every optimizer.

    Raises:
        UserError: timm has no such optimizer here, or its state does not fit a checkpoint.
    """
    name = settings.name.removeprefix(_PREFIX)
    if name not in list_optimizers():
        near = difflib.get_close_matches(name, list_optimizers(), n=1)
        advice = f"did you mean {_PREFIX}{near[0]}?" if near else "timm.optim.list_optimizers() names all"
        raise UserError(f"timm has no optimizer {name!r}: {advice}")
    info = get_optimizer_info(name)
    if info.second_order:
        raise UserError(
            f"optimizer.name={settings.name} needs second derivatives, which no recipe computes: use another"
        )
    options: dict[str, Any] = {"lr": settings.lr}
    if info.has_betas and info.num_betas == 2:
        options["betas"] = settings.betas
    if info.has_eps:
        options["eps"] = settings.eps
    if info.has_momentum:
        options["momentum"] = settings.momentum
    if "lamb" in name:
        options["max_grad_norm"] = None

    def make(groups: Groups) -> Optimizer:
        return get_optimizer_class(name)(groups, **options)

    counters = _counters(make, settings.name)
    return make(groups), counters


def _counters(make: Callable[[Groups], Optimizer], name: str) -> UpdateCounters:
    """Try one update of a few parameters; return where the optimizer counts, or refuse what else it keeps."""
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in _PROBES]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    names = [f"probe{number}" for number in range(len(parameters))]
    try:
        optimizer = make([{"params": parameters, "weight_decay": 0.0, "lr_scale": 1.0, "names": names}])
        before = _values(optimizer)
        optimizer.step()
    except Exception as error:  # an optional package is missing, or the optimizer needs more than a gradient
        raise UserError(f"optimizer.name={name} cannot be used here ({error}): use another") from None
    kept = {
        key: None
        for parameter in parameters
        for key, value in optimizer.state[parameter].items()
        if key != _STEP and value is not None and _differs_in_shape(value, parameter)
    }
    kept |= {key: None for key, value in _values(optimizer).items() if key != _STEP and before.get(key) != value}
    if kept:
        raise UserError(
            f"optimizer.name={name} keeps {', '.join(kept)}, which is not of a parameter's shape, so that no "
            f"checkpoint can hold it: use another"
        )
    return UpdateCounters(optimizer.state[parameters[0]].get(_STEP), optimizer.param_groups[0].get(_STEP))


def _values(optimizer: Optimizer) -> dict[str, Any]:
    return {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}


def _differs_in_shape(value: object, parameter: nn.Parameter) -> bool:
    return not isinstance(value, Tensor) or value.shape != parameter.shape
