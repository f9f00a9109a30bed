"""A model by name, initialised from the seed alone."""

import difflib
from collections import Counter

import timm
import torch
from torch import nn

from models import roadmap  # noqa: F401  its import makes the steps of the road timm models
from recipes.errors import UserError
from recipes.randomness import random_key
from recipes.schema import Recipe


def build(recipe: Recipe, classes: int) -> nn.Module:
    """Return the recipe's model with `classes` outputs, on the CPU (or the default device, e.g. meta), float32.

    Its weights are a pure function of the recipe's seed and of each parameter's name.

    Raises:
        UserError: timm has no model of that name, or the model cannot have the recipe's layer scale, stochastic depth or
            input size.
    """
    wanted = recipe.model
    if not timm.is_model(wanted.name):
        near = difflib.get_close_matches(wanted.name, timm.list_models(), n=1, cutoff=0)
        raise UserError(f"model.name={wanted.name!r} is not a timm model; did you mean {near[0]!r}?")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_key(recipe.seed, "init"))
        try:
            model = timm.create_model(wanted.name, num_classes=classes, **_options(recipe))
        except (
            TypeError,
            AssertionError,
            ValueError,
        ) as error:  # what timm's models raise for options they do not know
            raise UserError(_refusal(recipe, error)) from None
    if wanted.init_std is not None:
        _truncated_normal(model, wanted.init_std, recipe.seed)
    return model


def checkpoint_activations(model: nn.Module) -> None:
    """Let `model` compute the activations inside its blocks again in the backward pass instead of keeping them.

    Raises:
        UserError: the model does not offer it.
    """
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError):
        raise UserError(
            f"{type(model).__name__} cannot checkpoint activations: add engine.checkpoint_activations=false"
        ) from None


def compile_blocks(model: nn.Module, backend: str = "inductor") -> list[nn.Module]:
    """Let torch compile each block of `model`, in place, when it is first used; return the blocks.

    Blocks are the parts of the model's sequences of which there are several of one class, e.g. ConvNeXtBlock or Bottleneck. Those of
    one shape share their code, so this takes a fraction of the time of compiling the model as one; names and state stay as they are.

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
    # One function compiled for every width, for training and for evaluation: more versions than torch expects of one.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(blocks))
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
    return blocks


def scale_head(model: nn.Module, factor: float) -> None:
    """Multiply the classifier's weight and bias by `factor`.

    To be called after weights are loaded: ConvNeXt's code does it before, which has no effect on a loaded head.

    Raises:
        UserError: the model's classifier is not one linear layer.
    """
    head = model.get_classifier()
    if not isinstance(head, nn.Linear | nn.Conv2d):
        raise UserError(
            f"the classifier of {type(model).__name__} is not one layer to be scaled: add model.head_init_scale=null"
        )
    with torch.no_grad():
        head.weight.mul_(factor)
        if head.bias is not None:
            head.bias.mul_(factor)


def _options(recipe: Recipe) -> dict:
    """What timm's model is told beside the number of classes; only what the recipe asks for."""
    wanted, options = recipe.model, {}
    if wanted.drop_path > 0:
        options["drop_path_rate"] = wanted.drop_path
    if timm.models.get_pretrained_cfg_value(wanted.name, "fixed_input_size"):
        options["img_size"] = recipe.input.size
    if wanted.layer_scale is not None:
        if not timm.models.is_model_in_modules(wanted.name, ["convnext", "roadmap"]):
            raise UserError(f"model {wanted.name} has no layer scale: add model.layer_scale=null")
        options["ls_init_value"] = wanted.layer_scale
    return options


def _refusal(recipe: Recipe, error: Exception) -> str:
    name = recipe.model.name
    if "drop_path_rate" in str(error):
        return f"model {name} has no stochastic depth: add model.drop_path=0"
    return f"timm cannot build {name} for {recipe.input.size} pixels ({' '.join(str(error).split())}): choose another model.name or input.size"


def _truncated_normal(model: nn.Module, std: float, seed: int) -> None:
    """Weights of convolutions and linear layers ~ N(0, std) cut at +-2, biases 0 (ConvNeXt's code)."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if module.weight.is_meta:
            continue
        generator = torch.Generator().manual_seed(random_key(seed, f"init {name}"))
        nn.init.trunc_normal_(module.weight, std=std, generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
