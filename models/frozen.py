"""Trains a part of a model and freezes the rest: the classifier alone (a linear probe), or the last blocks.

It can also freeze the statistics of BatchNorm alone, while everything trains. mmdetection calls that `norm_eval`.

A frozen parameter needs no gradient and no optimizer state. A frozen layer computes as in evaluation, as is usual for
a probe: BatchNorm uses its running statistics and leaves them alone, and dropout and stochastic depth are off. So
`models.batch_norm` and `models.stochastic_depth` leave layers in evaluation mode as they are.
"""

from typing import Any, cast

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from models.batch_norm import has_batch_statistics
from recipes.errors import UserError

_LAST = "last:"


def freeze(model: nn.Module, train: str, norm_eval: bool = False) -> None:
    """Freeze all parameters of `model` but those that `train` names, in place.

    Args:
        train: "all", "head" for the classifier, or "last:N" for the classifier and the N groups of layers before it.
            The groups are timm's: residual blocks in most models, with the norm after the last one.
        norm_eval: also keep the BatchNorm layers that train in evaluation mode, so that they use their running
            statistics and leave them alone. Their scale and shift train.

    Raises:
        UserError: the model has no classifier, fewer groups than N, or no groups at all.
    """
    layers = [module for module in model.modules() if has_batch_statistics(module)] if norm_eval else []
    if train != "all":
        trained = _classifier_parameters(model) if train == "head" else _last_groups(model, int(train[len(_LAST) :]))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        layers += _frozen_modules(model)
    if layers:
        _keep_in_evaluation(model, layers)


def classifier_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that `get_classifier` of a timm model returns; distilled models have two."""
    found = cast(Any, model).get_classifier()
    return list(found) if isinstance(found, tuple | list | nn.ModuleList) else [found]


def accept_features(model: nn.Module, size: int) -> bool:
    """Let `model` also take what its classifier receives, ``[n, d]``, in the place of images; return whether it can.

    It can if its output is that of one linear layer, and nothing before this layer is random in training.

    Args:
        model: on the CPU.
        size: width and height of its images in pixels.
    """
    head, *others = classifier_layers(model)
    if others or type(head) is not nn.Linear:
        return False
    seen: list[tuple[Tensor, Tensor]] = []
    hook = head.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    was_training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(1, 3, size, size))
    finally:
        hook.remove()
        model.train(was_training)
    if len(seen) != 1 or seen[0][0].ndim != 2 or seen[0][1].data_ptr() != logits.data_ptr():
        return False
    whole = model.forward

    def forward(images: Tensor) -> Tensor:
        logits: Tensor = head(images) if images.ndim == 2 else whole(images)
        return logits

    vars(model)["forward"] = forward
    return True


def _classifier_parameters(model: nn.Module) -> set[str]:
    wanted = {parameter for layer in classifier_layers(model) for parameter in layer.parameters()}
    if not wanted:
        raise UserError(f"{type(model).__name__} has no classifier to train alone: add model.train=all")
    return {name for name, parameter in model.named_parameters() if parameter in wanted}


def _last_groups(model: nn.Module, count: int) -> set[str]:
    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        raise UserError(
            f"{type(model).__name__} does not say what its blocks are: use model.train=head or model.train=all"
        )
    groups = group_parameters(model, matcher(coarse=False), reverse=True)
    last = max(groups.values())
    if count >= last:
        raise UserError(
            f"model.train=last:{count} would train the whole {type(model).__name__}, which has {last} groups of layers "
            f"before its head: use model.train=last:{last - 1} at most, or model.train=all"
        )
    return {name for name, group in groups.items() if group >= last - count} | _classifier_parameters(model)


def _frozen_modules(module: nn.Module) -> list[nn.Module]:
    """Return the outermost frozen layers inside a module that is frozen in part.

    A layer without parameters but with buffers, e.g. a BatchNorm without weights, is frozen too.
    """
    found: list[nn.Module] = []
    for child in module.children():
        trains = {parameter.requires_grad for parameter in child.parameters()}
        if trains == {False} or (not trains and any(True for _ in child.buffers())):
            found.append(child)
        elif len(trains) == 2:
            found += _frozen_modules(child)
    return found


def _keep_in_evaluation(model: nn.Module, layers: list[nn.Module]) -> None:
    """Let `model.train()` leave these layers in evaluation mode."""

    def train(mode: bool = True) -> nn.Module:
        type(model).train(model, mode)
        for module in layers:
            module.eval()
        return model

    vars(model)["train"] = train  # engines and wrappers call `train` of the model, which reaches all of its layers
    model.train(model.training)
