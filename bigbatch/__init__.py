"""bigbatch as a library: the functions that the `bigbatch` command calls, and the decorators for code of your own.

A module that `--import` names registers its parts with `register_loss`, `register_optimizer`, `register_transform` and
`register_source`, and models with timm's `register_model`.
"""

from data.images.augment import custom_transforms
from data.sources import custom_sources
from data.sources.base import Listing, Names, Source
from data.writing.sharding import shard
from launcher.engines.optimizer import custom_optimizers
from launcher.runs.history import History
from launcher.training.train import StartOptions, train
from launcher.training.user_code_checks import check_exact
from models.custom_loss import custom_losses
from recipes.errors import UserError
from recipes.load import load as load_recipe
from recipes.schema import Recipe

register_loss = custom_losses.register
register_optimizer = custom_optimizers.register
register_source = custom_sources.register
register_transform = custom_transforms.register

__all__ = [
    "History",
    "Listing",
    "Names",
    "Recipe",
    "Source",
    "StartOptions",
    "UserError",
    "check_exact",
    "load_recipe",
    "register_loss",
    "register_optimizer",
    "register_source",
    "register_transform",
    "shard",
    "train",
]
