"""A recipe's model made exact: keyed random layers, and BatchNorm over fixed statistics batches."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from models import batch_norm, stochastic_depth
from models.batch_norm import RunningStatistics
from models.build import build
from models.draws import find_draws
from models.stochastic_depth import StochasticDepth
from models.weights import first_line
from recipes.errors import UserError
from recipes.schema import Recipe


@dataclass(frozen=True)
class PreparedModel:
    """A model with the objects that make its result independent of how the batch is cut into micro-batches.

    Attributes:
        module: the network, float32.
        drop_path: draws the masks of stochastic depth and dropout before each forward pass.
        bn_stats: updates BatchNorm's running statistics once per optimizer step; None for a model without BatchNorm
            or with all its BatchNorm layers in evaluation mode.
    """

    module: nn.Module
    drop_path: StochasticDepth
    bn_stats: RunningStatistics | None

    @property
    def has_batch_norm(self) -> bool:
        return self.bn_stats is not None


def prepare_model(recipe: Recipe, classes: int) -> PreparedModel:
    """Return the recipe's model with `classes` outputs on the default device (e.g. meta, where only shapes are needed).

    Raises:
        UserError: there is no such model, or one of its layers cannot be made exact; names the layer.
    """
    module = build(recipe, classes)
    drop_path = stochastic_depth.attach(module, recipe.seed)
    head_dropout, per_image = _random_layers(recipe, classes)
    if head_dropout:
        drop_path.key_head_dropout(module)
    for dropout, value in zip(drop_path.dropouts, per_image, strict=True):
        dropout.per_image = value
    return PreparedModel(module, drop_path, batch_norm.attach(module, recipe.batch.statistics_size))


@lru_cache(maxsize=8)
def _random_layers(recipe: Recipe, classes: int) -> tuple[bool, tuple[bool, ...]]:
    """Return whether the model's head calls ``F.dropout``, and `per_image` of each keyed dropout layer.

    Raises:
        UserError: the model draws random numbers in a way that cannot be keyed, or cannot process the recipe's images.
    """
    name = recipe.model.name
    with torch.device("meta"):
        module = build(recipe, classes)
    drop_path = stochastic_depth.attach(module, recipe.seed)
    try:
        draws = find_draws(module, drop_path, recipe.input.size)
        head_dropout = [draw.before_classifier for draw in draws] == [True]
        if head_dropout:
            drop_path.key_head_dropout(module)
            draws = find_draws(module, drop_path, recipe.input.size)
    except Exception as error:  # whatever a model raises for images that it cannot process
        raise UserError(
            f"model {name} cannot process images of {recipe.input.size} pixels ({first_line(error)}): "
            f"choose another input.size or model.name"
        ) from None
    if recipe.input.evaluated_size != recipe.input.size:
        _check_evaluated_size(recipe, module)
    if draws:
        layer = module.get_submodule(draws[0].layer)
        where = f"layer {draws[0].layer} ({type(layer).__name__})" if draws[0].layer else type(layer).__name__
        raise UserError(
            f"model {name} draws random numbers in its {where}, which cannot be kept independent of the "
            f"cut of the batch: choose a model.name without such a layer"
        )
    return head_dropout, tuple(dropout.per_image for dropout in drop_path.dropouts)


def _check_evaluated_size(recipe: Recipe, module: nn.Module) -> None:
    """Check that a model on the meta device can process images of the size for evaluation.

    Raises:
        UserError: it cannot.
    """
    size = recipe.input.evaluated_size
    try:
        module.eval()(torch.empty(1, 3, size, size, device="meta"))
    except Exception as error:  # as above
        raise UserError(
            f"model {recipe.model.name}, built for {recipe.input.size} pixels, cannot evaluate images of {size} "
            f"({first_line(error)}): add input.eval_size=null"
        ) from None
