"""bigbatch as a library: the functions that the `bigbatch` command calls, and the decorators for code of your own.

docs/library.md shows a whole run in ten lines.

A module that `--import` names registers its parts with `register_loss`, `register_optimizer`, `register_transform` and
`register_source`, and models with timm's `register_model`.
"""

from data.images.augment import custom_transforms
from data.sources.base import Listing, Names, Source
from data.sources.recognition import custom_sources
from data.writing.sharding import shard
from launcher.engines.optimizer import custom_optimizers
from launcher.evaluation.evaluate import EvaluateOptions, evaluate
from launcher.evaluation.predict import predict
from launcher.experiments.lr_range_test import LrRange, lr_range_test
from launcher.planning.plan import recommend
from launcher.planning.plan_request import PlanRequest, plan_options
from launcher.runs.history import History
from launcher.runs.report import write_report
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
    "EvaluateOptions",
    "History",
    "Listing",
    "LrRange",
    "Names",
    "PlanRequest",
    "Recipe",
    "Source",
    "StartOptions",
    "UserError",
    "check_exact",
    "evaluate",
    "load_recipe",
    "lr_range_test",
    "plan_options",
    "predict",
    "recommend",
    "register_loss",
    "register_optimizer",
    "register_source",
    "register_transform",
    "shard",
    "train",
    "write_report",
]
