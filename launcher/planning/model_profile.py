"""The profile of a recipe's model, whatever the hardware: parameters, and memory and work of a pass.

Two steps are traced once and the result is kept in the user's cache folder, so that later plans are arithmetic. torch
is imported only for tracing, because it takes seconds.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from platformdirs import user_cache_path

from data.atomic_io import write_atomically
from launcher.engines.deepspeed_config import KEPT_WHOLE
from launcher.planning.pass_profile import Affine, PassProfile, RepeatedOperation, pass_profile
from recipes.errors import UserError
from recipes.parsing import parse_json
from recipes.schema import Recipe

if TYPE_CHECKING:
    from torch import nn

_TRACED_IMAGES = 16  # of the smaller traced step; a model with BatchNorm takes its statistics batch instead
_FORMAT = 6  # of the cache files and of what they count: raise it whenever either changes


class UnpredictableModelError(UserError):
    """The model cannot be traced, because its operations depend on values."""


class ParameterSizes(NamedTuple):
    """Elements of all parameters, the largest, the small ones that ZeRO-3 does not partition, and those that train."""

    total: int
    largest: int
    small: int
    trained: int


def parameter_sizes(model: "nn.Module") -> ParameterSizes:
    """Return the sizes of a model whose parameters are not partitioned."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return ParameterSizes(sum(sizes), max(sizes), sum(size for size in sizes if size < KEPT_WHOLE), trained)


@dataclass(frozen=True)
class ModelProfile:
    """What one model needs at one image size and precision.

    Attributes:
        buffers: bytes of its buffers.
        multiply_adds: of one forward pass over one image.
        usual_pass: without activation checkpointing.
        checkpointed_pass: with activation checkpointing; None if the model does not support it.
    """

    sizes: ParameterSizes
    buffers: int
    multiply_adds: int
    has_batch_norm: bool
    usual_pass: PassProfile
    checkpointed_pass: PassProfile | None

    @property
    def parameters(self) -> int:
        """Elements of all parameters."""
        return self.sizes.total

    def pass_of(self, checkpointing: bool) -> PassProfile:
        """Return the pass with or without activation checkpointing, which the model must support."""
        chosen = self.checkpointed_pass if checkpointing else self.usual_pass
        assert chosen is not None
        return chosen


def profile_model(recipe: Recipe, precision: str) -> ModelProfile:
    """Return the profile of the recipe's model at "float32", "bf16" or "fp16" on a GPU, cached if it was traced before.

    Raises:
        UserError: the recipe leaves the number of classes open, or the model cannot be built.
        UnpredictableModelError: the model cannot be traced.
    """
    if recipe.data.classes is None:
        raise UserError(f"recipe {recipe.name} leaves the number of classes to the shards: add data.classes=NUMBER")
    file = _cache_file(recipe, precision)
    try:
        return _from_json(file.read_text())
    except (OSError, ValueError, TypeError, KeyError):  # the file is missing or damaged
        profile = _traced(recipe, recipe.data.classes, precision)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(asdict(profile)).encode())
    except OSError:
        pass  # without a cache every plan traces again, which only takes time
    return profile


def _from_json(text: str) -> ModelProfile:
    values = parse_json(text)
    usual, checkpointed = values.pop("usual_pass"), values.pop("checkpointed_pass")
    return ModelProfile(
        sizes=ParameterSizes(*values.pop("sizes")),
        usual_pass=_pass_from_json(usual),
        checkpointed_pass=_pass_from_json(checkpointed) if checkpointed else None,
        **values,
    )


def _pass_from_json(values: dict) -> PassProfile:
    return PassProfile(
        [Affine(*line) for line in values["memory"]],
        [
            RepeatedOperation(times, Affine(*flops), Affine(*size), fusible)
            for times, flops, size, fusible in values["operations"]
        ],
        values["repeats"],
    )


def _cache_file(recipe: Recipe, precision: str) -> Path:
    """Return the cache file, whose name depends on everything that decides the profile."""
    decisive = {
        "format": _FORMAT,
        "model": recipe.model.model_dump(exclude={"weights", "head_init_scale", "init_std"}),
        "classes": recipe.data.classes,
        "statistics": recipe.batch.statistics_size,
        "size": recipe.input.size,
        "precision": precision,
        "versions": [version("torch"), version("timm")],
    }
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    return user_cache_path("bigbatch", appauthor=False) / "profiles" / f"{digest[:32]}.json"


def _traced(recipe: Recipe, classes: int, precision: str) -> ModelProfile:
    import torch

    from models import batch_norm
    from models.build import build
    from models.cost import multiply_adds

    with torch.device("meta"):
        model = build(recipe, classes)
    sizes = parameter_sizes(model)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    try:
        cost = multiply_adds(model, recipe.input.size)
        has_batch_norm = batch_norm.attach(model, recipe.batch.statistics_size) is not None
        images = recipe.batch.statistics_size if has_batch_norm else _TRACED_IMAGES
        usual = _pass(recipe, classes, precision, images, checkpointing=False)
    except UserError:
        raise
    except Exception as error:  # a model may raise anything where its tensors have no values
        raise UnpredictableModelError(
            f"the memory of {recipe.model.name} cannot be predicted, its operations depend on values ({error})"
        ) from None
    try:
        checkpointed = _pass(recipe, classes, precision, images, checkpointing=True)
    except UserError:  # the model does not support activation checkpointing
        checkpointed = None
    return ModelProfile(sizes, buffers, cost, has_batch_norm, usual, checkpointed)


def _pass(recipe: Recipe, classes: int, precision: str, images: int, checkpointing: bool) -> PassProfile:
    """Trace a step of `images` and one of twice as many."""
    from launcher.planning.step_trace import trace_step

    one, two = (trace_step(recipe, classes, count, precision, checkpointing) for count in (images, 2 * images))
    return pass_profile(one, two)
