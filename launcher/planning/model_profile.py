"""What a recipe's model profile, whatever the hardware: parameters, multiply-adds, and the memory of a step per image.

Found once by tracing two steps and then kept in the user's cache folder, so that a plan is a matter of arithmetic. torch is
imported only where there is something to trace.
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
from recipes.errors import UserError
from recipes.schema import Recipe

if TYPE_CHECKING:
    from torch import nn

_TRACED = 16  # images of the smaller of the two steps; a model with BatchNorm needs whole statistics batches
_FORMAT = 3  # of the files in the cache, and of what is counted


class Unpredictable(UserError):
    """The model cannot be traced: what it does depends on values."""


@dataclass(frozen=True)
class Activations:
    """Peak memory of a forward and backward pass beside parameters and gradients, in bytes, by the number of images.

    At every moment of the pass memory is affine in the images: what does not grow with them is the parameters at lower
    precision and a layer's gradient before it is added. The peak is at the moment whose line is highest, so it is affine but
    for a few images, where another moment's line is. `lines` are those that are the highest somewhere, as bytes at no image
    and bytes per image. `operations` is how many operations torch starts.
    """

    lines: list[tuple[float, float]]
    operations: int

    def of(self, images: int) -> int:
        return round(max(fixed + per_image * images for fixed, per_image in self.lines))


class ParameterSizes(NamedTuple):
    """Elements of all parameters of a model, of the largest, and of those so small that ZeRO-3 keeps them whole."""

    total: int
    largest: int
    small: int


def parameter_sizes(model: "nn.Module") -> ParameterSizes:
    """Of a model in which each parameter is whole."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    return ParameterSizes(sum(sizes), max(sizes), sum(size for size in sizes if size < KEPT_WHOLE))


@dataclass(frozen=True)
class ModelProfile:
    """Of one model at one size and precision. `recomputed` is with activation checkpointing, None if the model has none."""

    sizes: ParameterSizes
    buffers: int  # bytes
    multiply_adds: int  # of one forward pass over one image
    has_batch_norm: bool
    kept: Activations
    recomputed: Activations | None

    @property
    def parameters(self) -> int:
        """Elements of all parameters."""
        return self.sizes.total

    def activations(self, checkpointing: bool) -> Activations:
        assert checkpointing in (True, False)  # not "auto"
        chosen = self.recomputed if checkpointing else self.kept
        assert chosen is not None
        return chosen


def profile_model(recipe: Recipe, precision: str) -> ModelProfile:
    """Return what the recipe's model needs at "float32", "bf16" or "fp16", as on a GPU; from the cache if it was traced before.

    Raises:
        UserError: the model cannot be built.
        Unpredictable: it cannot be traced.
    """
    if recipe.data.classes is None:
        raise UserError(f"recipe {recipe.name} leaves the number of classes to the shards: add data.classes=NUMBER")
    file = _cache_file(recipe, precision)
    try:
        values = json.loads(file.read_text())
        recomputed = values.pop("recomputed")
        kept = Activations(**values.pop("kept"))
        sizes = ParameterSizes(*values.pop("sizes"))
        return ModelProfile(
            **values, sizes=sizes, kept=kept, recomputed=Activations(**recomputed) if recomputed else None
        )
    except (OSError, ValueError, TypeError, KeyError):  # not there, or not whole: trace
        profile = _traced(recipe, precision)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(asdict(profile)).encode())
    except OSError:
        pass  # a home that cannot be written costs time, nothing else
    return profile


def _cache_file(recipe: Recipe, precision: str) -> Path:
    decides = {
        "format": _FORMAT,
        "model": recipe.model.model_dump(exclude={"weights", "head_init_scale", "init_std"}),
        "classes": recipe.data.classes,
        "statistics": recipe.batch.statistics_size,
        "size": recipe.input.size,
        "precision": precision,
        "versions": [version("torch"), version("timm")],
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return user_cache_path("bigbatch", appauthor=False) / "profiles" / f"{digest[:32]}.json"


def _traced(recipe: Recipe, precision: str) -> ModelProfile:
    import torch

    from models import batch_norm
    from models.build import build
    from models.cost import multiply_adds

    with torch.device("meta"):
        model = build(recipe, recipe.data.classes)
    sizes = parameter_sizes(model)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    try:
        cost = multiply_adds(model, recipe.input.size)
        has_batch_norm = batch_norm.attach(model, recipe.batch.statistics_size) is not None
        smaller = recipe.batch.statistics_size if has_batch_norm else _TRACED
        kept = _activations(recipe, precision, smaller, checkpointing=False)
    except UserError:
        raise
    except Exception as error:  # whatever a model does with tensors that have no values
        raise Unpredictable(
            f"the memory of {recipe.model.name} cannot be predicted, its operations depend on values ({error})"
        ) from None
    try:
        recomputed = _activations(recipe, precision, smaller, checkpointing=True)
    except UserError:
        recomputed = None
    return ModelProfile(sizes, buffers, cost, has_batch_norm, kept, recomputed)


def _activations(recipe: Recipe, precision: str, smaller: int, checkpointing: bool) -> Activations:
    from launcher.planning.step_trace import trace_step

    one, two = (
        trace_step(recipe, recipe.data.classes, count, precision, checkpointing) for count in (smaller, 2 * smaller)
    )
    if len(one.history) == len(two.history):
        moments = list(zip(one.history, two.history))
    else:
        moments = [(one.peak, two.peak)]  # BatchNorm takes more statistics batches apart, so moments do not correspond
    lines = [(2 * first - second, (second - first) / smaller) for first, second in moments]
    return Activations(_highest_somewhere(lines), one.operations)


def _highest_somewhere(lines: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lines, as (value at 0, slope), that are above all others for some number of images of at least 1."""
    chosen = [max(lines, key=lambda line: (line[0] + line[1], line[1]))]
    while True:
        fixed, per_image = chosen[-1]
        steeper = [line for line in lines if line[1] > per_image]
        if not steeper:
            return chosen
        chosen.append(min(steeper, key=lambda line: ((fixed - line[0]) / (line[1] - per_image), -line[1])))
