"""The optimizer of a recipe, with the average of the weights (EMA) as part of its state.

The average is a state tensor like Adam's moments, updated right after each update from the same weights. Whatever shards,
offloads or saves the optimizer's state therefore does the same to the average, and there is no second copy of the model.
"""

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from models.parameter_groups import parameter_groups
from recipes.schema import Recipe

EMA = "ema"


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Return AdamW or SGD over the model's parameter groups; each group carries `lr_scale` and the `names` of its parameters."""
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
    if settings.name == "adamw":
        optimizer = AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)
    else:
        optimizer = SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True)
    if recipe.ema.decay is not None:
        _average_weights(optimizer, recipe.ema.decay)
    return optimizer


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set every group's learning rate to its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def _average_weights(optimizer: Optimizer, decay: float) -> None:
    """After each update: average = decay * average + (1 - decay) * weights, from the initial weights on, without warm-up."""
    initial: dict[nn.Parameter, torch.Tensor] = {}

    def remember_initial_weights(optimizer, _args, _kwargs):
        for parameter in _parameters(optimizer):
            if EMA not in optimizer.state.get(parameter, {}) and parameter not in initial:
                initial[parameter] = parameter.detach().clone(memory_format=torch.preserve_format)

    def average(optimizer, _args, _kwargs):
        for parameter in list(initial):
            optimizer.state[parameter][EMA] = initial.pop(parameter)
        parameters = list(_parameters(optimizer))
        with torch.no_grad():
            torch._foreach_lerp_([optimizer.state[parameter][EMA] for parameter in parameters], parameters, 1 - decay)

    optimizer.register_step_pre_hook(remember_initial_weights)
    optimizer.register_step_post_hook(average)


def _parameters(optimizer: Optimizer):
    return (
        parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None
    )
