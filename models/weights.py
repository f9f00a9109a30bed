"""Weights from files: read without executing anything, renamed to timm's names, fitted to a model."""

import logging
from pathlib import Path

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from recipes.errors import UserError


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights in a ``.safetensors`` file or in a ``.pth`` file of timm's or ConvNeXt's training code.

    In a ``.pth`` the weights may lie under `model`, `model_ema` or `state_dict` and carry a ``module.`` prefix. It is read
    with ``weights_only=True``: tensors only, nothing in it runs.

    Raises:
        UserError: no such file, or not a file of weights.
    """
    if not path.is_file():
        raise UserError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as weights ({_first_line(error)}): it is damaged or of another kind"
        ) from None
    except Exception as error:  # torch.load raises pickle errors of several kinds
        raise UserError(f"{path} holds more than weights and is not opened ({_first_line(error)})") from None
    for wrapper in ("model", "model_ema", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    weights = {name.removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise UserError(f"{path} holds no weights")
    return weights


def timm_pretrained(name: str) -> dict[str, Tensor]:
    """Return timm's pretrained weights of model `name`, downloaded or from its cache.

    Raises:
        UserError: there are none, or they cannot be had from here.
    """
    logger = logging.getLogger("huggingface_hub")  # warns of every attempt; one sentence at the end says it all
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:
        raise UserError(
            f"timm's pretrained weights of {name} cannot be had here ({_first_line(error)}): download them elsewhere and give "
            f"the file as model.weights=FILE"
        ) from None
    finally:
        logger.setLevel(level)


def fit_weights(model: nn.Module, weights: dict[str, Tensor], origin: str, new_head: bool = True) -> list[str]:
    """Load `weights` into `model`; return a note for each thing that was not loaded.

    Parameter names of ConvNeXt's own code are renamed to timm's. With `new_head`, a head for another number of classes is
    left as it is initialised; everything else must be there in the right shape.

    Raises:
        UserError: a weight is missing or of the wrong shape; names the first one.
    """
    if any(name.startswith("downsample_layers.") for name in weights):
        weights = timm.models.convnext.checkpoint_filter_fn(weights, model)
    own = model.state_dict()
    head = model.default_cfg["classifier"]
    notes = []
    for name in (f"{head}.weight", f"{head}.bias"):
        if new_head and name in weights and weights[name].shape[0] != own[name].shape[0]:
            notes.append(
                f"{name}: {weights[name].shape[0]} classes in {origin}, {own[name].shape[0]} here; a new head is trained"
            )
            weights = {other: value for other, value in weights.items() if other != name} | {name: own[name]}
    for name, value in own.items():
        if name not in weights:
            raise UserError(f"{origin} has no {name}: these are not weights of this model")
        if weights[name].shape != value.shape:
            raise UserError(
                f"{origin} does not fit this model: {name} is {_shape(weights[name])} there and {_shape(value)} here; "
                f"is model.name the model it was trained with?"
            )
    notes += [f"{name}: not part of this model" for name in weights if name not in own]
    model.load_state_dict({name: weights[name] for name in own})
    return notes


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "one number"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
