"""A recipe's model made exact: built, with keyed stochastic depth and with BatchNorm over fixed statistics batches."""

from dataclasses import dataclass

from torch import nn

from models import batch_norm, stochastic_depth
from models.batch_norm import RunningStatistics
from models.build import build
from models.stochastic_depth import StochasticDepth
from recipes.schema import Recipe


@dataclass(frozen=True)
class PreparedModel:
    """A model, and what has to be called around its passes so that the result does not depend on the cut of the batch.

    Attributes:
        module: the network, float32.
        drop_path: draws the masks of stochastic depth before each forward pass.
        bn_stats: moves BatchNorm's running averages once per optimizer step; None for a model without BatchNorm.
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
    return PreparedModel(module, drop_path, batch_norm.attach(module, recipe.batch.statistics_size))
