"""The optimizer of a recipe, with the exponential moving average (EMA) of the weights as part of its state.

The EMA is a state tensor like Adam's moments, and is updated right after each update of the weights. Whatever shards,
offloads or saves the optimizer's state therefore does the same to the EMA, and no second copy of the model is needed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from launcher.engines.timm_optimizers import UpdateCounters, make_timm_optimizer
from models.parameter_groups import parameter_groups
from recipes.errors import UserError
from recipes.schema import Recipe
from recipes.sections import OptimizerSettings
from recipes.user_code import Registry, running

EMA = "ema"
_EMA_DECAY = "ema_decay"  # the key of every parameter group that holds the decay of the next update
_COUNTERS = "_bigbatch_update_counters"  # an attribute of timm's optimizers

# Takes the parameter groups and the section `optimizer` of the recipe, and returns a torch optimizer.
CustomOptimizer = Callable[[list[dict[str, Any]], OptimizerSettings], Optimizer]
custom_optimizers: Registry[CustomOptimizer] = Registry("optimizer")


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Return the recipe's optimizer over the model's parameter groups.

    Each group has an `lr_scale` and the `names` of its parameters.

    Raises:
        UserError: `code.optimizer` names no registered optimizer, or timm has no such optimizer.
        UserCodeError: the user's code fails.
    """
    settings = recipe.optimizer
    parameters = dict(model.named_parameters())
    groups = [
        {
            "params": [parameters[name] for name in group.names],
            "names": list(group.names),
            "weight_decay": group.weight_decay,
            "lr_scale": group.lr_scale,
        }
        for group in parameter_groups(model, settings)
    ]
    optimizer: Optimizer
    if recipe.code.optimizer is not None:
        optimizer = _make_custom(recipe, groups)
    elif settings.name == "adamw":
        optimizer = AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)
    elif settings.name != "sgd":
        optimizer, counters = make_timm_optimizer(groups, settings)
        vars(optimizer)[_COUNTERS] = counters
    else:
        optimizer = SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True)
    if recipe.ema.decay is not None:
        _add_ema(optimizer)
        set_ema_decay(optimizer, recipe.ema.decay)
    return optimizer


def _make_custom(recipe: Recipe, groups: list[dict[str, Any]]) -> Optimizer:
    name = str(recipe.code.optimizer)
    make = custom_optimizers.get(name, recipe.code.modules)
    with running(f"optimizer {name}"):
        optimizer = make(groups, recipe.optimizer)
    if not isinstance(optimizer, Optimizer):
        raise UserError(
            f"optimizer {name} of your own code returns {type(optimizer).__name__}: return a torch.optim.Optimizer"
        )
    return optimizer


def set_update_count(optimizer: Optimizer, updates: int) -> None:
    """Set how many updates an optimizer of timm believes to have done, after its state was loaded."""
    counters: UpdateCounters | None = vars(optimizer).get(_COUNTERS)
    if counters:
        counters.set(optimizer, updates)


def adam_step(optimizer: Optimizer, updates: int, device: torch.device) -> torch.Tensor:
    """Return Adam's number of updates, a float32 scalar where torch expects it.

    That is `device` for a fused or capturable optimizer. Others read the number in every update, which would make the
    host wait for a GPU, so they keep it on the CPU.
    """
    group = optimizer.param_groups[0]
    on_device = group.get("fused") or group.get("capturable")
    return torch.tensor(float(updates), device=device if on_device else "cpu")


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set every group's learning rate: `lr` times its `lr_scale`, which layer-wise decay makes smaller than one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def set_weight_decay(optimizer: Optimizer, weight_decay: float) -> None:
    """Set the weight decay of the groups that have any; the others keep none."""
    for group in optimizer.param_groups:
        if group["weight_decay"] > 0:
            group["weight_decay"] = weight_decay


def set_ema_decay(optimizer: Optimizer, decay: float) -> None:
    """Set the decay of the EMA in the next update."""
    for group in optimizer.param_groups:
        group[_EMA_DECAY] = decay


def _add_ema(optimizer: Optimizer) -> None:
    """After each update, set ema = decay * ema + (1 - decay) * weights, from the initial weights on.

    This is timm's ModelEma, which ConvNeXt's recipes use.
    """
    initial: dict[nn.Parameter, torch.Tensor] = {}

    def remember_initial_weights(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        for parameter in _parameters(optimizer):
            if EMA not in optimizer.state.get(parameter, {}) and parameter not in initial:
                initial[parameter] = parameter.detach().clone(memory_format=torch.preserve_format)

    def average(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        # Not before the step: an optimizer assumes that a parameter whose state is not empty has its moments.
        for parameter in list(initial):
            optimizer.state[parameter][EMA] = initial.pop(parameter)
        parameters: list[torch.Tensor] = list(_parameters(optimizer))
        averages = [optimizer.state[parameter][EMA] for parameter in parameters]
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - optimizer.param_groups[0][_EMA_DECAY])

    optimizer.register_step_pre_hook(remember_initial_weights)
    optimizer.register_step_post_hook(average)


def _parameters(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    """Yield the parameters of this update. ZeRO-3 steps group by group: the other groups have no gradient then."""
    return (
        parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None
    )
