"""A model by name, initialised from the seed alone."""

import difflib
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import timm
import torch
from timm.layers import DropPath
from torch import nn
from torch.overrides import TorchFunctionMode

# Importing these modules registers their networks with timm.
from models import cifar_convnet, cifar_resnet, convnext_isotropic, roadmap  # noqa: F401
from models.frozen import freeze
from models.parameter_groups import layer_of_parameters
from recipes.errors import UserError
from recipes.randomness import random_key
from recipes.schema import Recipe
from recipes.user_code import import_modules


def build(recipe: Recipe, classes: int) -> nn.Module:
    """Return the recipe's model with `classes` outputs, on the CPU (or the default device, e.g. meta), float32.

    The initial weights are a pure function of the recipe's seed and of each parameter's name. What the recipe does not
    train is frozen, and so are the statistics of BatchNorm under `model.norm_eval`.

    Raises:
        UserError: timm has no model of that name, or the model does not support the recipe's layer scale, stochastic
            depth, input size or `model.train`; names every key to change.
    """
    wanted = recipe.model
    import_modules(recipe.code.modules)  # they may register models with timm
    if not timm.is_model(wanted.name):
        near = difflib.get_close_matches(wanted.name, timm.list_models(), n=1, cutoff=0)
        raise UserError(f"model.name={wanted.name!r} is not a timm model; did you mean {near[0]!r}?")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_key(recipe.seed, "init"))
        with _WithoutValues() if torch.get_default_device().type == "meta" else nullcontext():
            model = _create(recipe, classes)
    if wanted.init_std is not None:
        _truncated_normal(model, wanted.init_std, recipe.seed)
    freeze(model, wanted.train, wanted.norm_eval)
    return model


class _WithoutValues(TorchFunctionMode):
    """Skips what fills a tensor in place, because a tensor on the meta device has no values.

    Torch takes milliseconds for such an operation there, so that a small model would take longer to build than on the
    CPU.
    """

    _FILLING = {
        getattr(torch.Tensor, name)
        for name in ("uniform_", "normal_", "erfinv_", "clamp_", "mul_", "add_", "fill_", "zero_")
    }

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return the first argument of an operation that fills it; do every other operation."""
        return args[0] if function in self._FILLING else function(*args, **(kwargs or {}))


def checkpoint_activations(model: nn.Module) -> None:
    """Let `model` recompute the activations inside its blocks in the backward pass instead of storing them.

    Raises:
        UserError: the model does not support it.
    """
    try:
        cast(Any, model).set_grad_checkpointing(True)
    except (AttributeError, AssertionError):
        raise UserError(
            f"{type(model).__name__} cannot checkpoint activations: add engine.checkpoint_activations=false"
        ) from None


def compile_blocks(model: nn.Module, backend: str = "inductor") -> list[nn.Module]:
    """Let torch compile each block of `model`, in place, when it is first used; return the blocks.

    Blocks are the members of the model's sequences whose class occurs more than once, e.g. ConvNeXtBlock or Bottleneck.
    Blocks of the same shape share their code, so this takes a fraction of the time of compiling the whole model. Names
    and state of the model do not change.

    Raises:
        UserError: the model has no such blocks.
    """
    sequences = [module for module in model.modules() if isinstance(module, nn.Sequential | nn.ModuleList)]
    parts = [part for sequence in sequences for part in sequence if any(part.children()) and part not in sequences]
    several = {kind for kind, count in Counter(map(type, parts)).items() if count > 1}
    parts = [part for part in parts if type(part) in several]
    blocks = [
        part for part in parts if not any(other in parts for other in part.modules() if other is not part)
    ]  # the innermost
    if not blocks:
        raise UserError(f"{type(model).__name__} has no repeated blocks to compile: add engine.compile=false")
    # torch compiles one version of the block's code per width, for training and for evaluation. Beyond its limit on
    # versions it would run the block uncompiled.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(blocks))
    # Under DDP, torch would cut a compiled graph where a bucket of gradients ends, so that their all-reduce can begin
    # inside it. A block is small: the all-reduce begins between blocks anyway, and the cut only costs fusion.
    torch._dynamo.config.optimize_ddp = False
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
    return blocks


def scale_head(model: nn.Module, factor: float) -> None:
    """Multiply the classifier's weight and bias by `factor`.

    Call it after weights are loaded. ConvNeXt's code does it before, which has no effect on a loaded head.

    Raises:
        UserError: the model's classifier is not one linear layer.
    """
    head = cast(Any, model).get_classifier()
    if not isinstance(head, nn.Linear | nn.Conv2d):
        raise UserError(
            f"the classifier of {type(model).__name__} is not a single layer, so it cannot be scaled: "
            f"add model.head_init_scale=null"
        )
    with torch.no_grad():
        head.weight.mul_(factor)
        if head.bias is not None:
            head.bias.mul_(factor)


def _create(recipe: Recipe, classes: int) -> nn.Module:
    wanted, options, unsupported = recipe.model, dict[str, Any](), dict[str, str]()
    # A model that someone else has registered need not have a configuration of pretrained weights.
    pretrained = timm.models.get_pretrained_cfg(wanted.name, allow_unregistered=True)
    if pretrained is not None and pretrained.fixed_input_size:
        options["img_size"] = recipe.input.size
        if recipe.input.evaluated_size != recipe.input.size:
            raise UserError(
                f"{wanted.name} takes images of one size: add input.eval_size=null, and set input.size for both"
            )
    if wanted.drop_path > 0:
        options["drop_path_rate"] = wanted.drop_path
    if wanted.layer_scale is not None:
        if timm.models.is_model_in_modules(wanted.name, ["convnext", "convnext_isotropic", "roadmap"]):
            options["ls_init_value"] = wanted.layer_scale
        elif wanted.name.startswith("deit3_"):
            options["init_values"] = wanted.layer_scale
        else:
            unsupported["model.layer_scale=null"] = "layer scale"
    try:
        model = timm.create_model(wanted.name, num_classes=classes, **options)
    except (TypeError, AssertionError, ValueError) as error:  # what timm's models raise for unknown options
        if "drop_path_rate" not in str(error):
            raise UserError(
                f"timm cannot build {wanted.name} for {recipe.input.size} pixels ({' '.join(str(error).split())}): "
                f"choose another model.name or input.size"
            ) from None
        unsupported["model.drop_path=0"] = "stochastic depth"
    if unsupported:
        # Also name the keys that would be refused only later, so that the user can correct all of them at once.
        unsupported |= _unsupported_elsewhere(recipe, classes)
        missing = " and no ".join(unsupported.values())
        raise UserError(f"model {wanted.name} has no {missing}: add {' '.join(unsupported)}")
    if not hasattr(model, "get_classifier"):
        raise UserError(f"{wanted.name} has no classifier, as timm's encoders: choose another model.name")
    _name_classifier(model)
    if wanted.drop_path == 0:
        _remove_drop_path(model)
    return model


def _name_classifier(model: nn.Module) -> None:
    """Give a model that someone else has written the entry of timm's `default_cfg` that names its classifier."""
    if not hasattr(model, "default_cfg"):
        head = cast(Any, model).get_classifier()
        cast(Any, model).default_cfg = {
            "classifier": next(name for name, module in model.named_modules() if module is head)
        }


def _remove_drop_path(model: nn.Module) -> None:
    """Remove the stochastic depth that a model has by default: 0.1 in timm's Swin, for instance."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is DropPath:
                setattr(module, name, nn.Identity())


def _unsupported_elsewhere(recipe: Recipe, classes: int) -> dict[str, str]:
    """Return overrides for features that the model lacks and that are checked only later, each with its name."""
    found = {}
    with torch.device("meta"):
        model = timm.create_model(recipe.model.name, num_classes=classes)
    if recipe.optimizer.layer_decay is not None:
        try:
            layer_of_parameters(model)
        except UserError:
            found["optimizer.layer_decay=null"] = "layer-wise learning rates"
    if recipe.model.head_init_scale is not None and not isinstance(
        cast(Any, model).get_classifier(), nn.Linear | nn.Conv2d
    ):
        found["model.head_init_scale=null"] = "classifier of one layer"
    return found


def _truncated_normal(model: nn.Module, std: float, seed: int) -> None:
    """Draw weights of convolutions and linear layers from N(0, std) cut at ±2, and set biases to 0 (as ConvNeXt)."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if module.weight.is_meta:
            continue
        generator = torch.Generator().manual_seed(random_key(seed, f"init {name}"))
        nn.init.trunc_normal_(module.weight, std=std, generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
