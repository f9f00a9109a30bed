"""Weights from files: read without executing anything, renamed to timm's names, fitted to a model."""

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from recipes.errors import UserError

# Where training scripts put weights in their files. EMA weights come first, as in timm's own loader.
_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")
# What wrappers put before the names: DDP, torch.compile, Lightning modules, and models of backbone and head.
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # in a folder as the hub lays it out, the preferred one first
_LARGEST_HEADER = 100_000_000  # bytes; safetensors refuses longer ones
_RESOLUTION_DEPENDENT = ("pos_embed", "relative_position", "rel_pos", "attn_mask")  # shapes depend on the image size

# timm's and ConvNeXt's training scripts also save their arguments and metrics, the latter as NumPy scalars. Unpickling
# these classes executes no code from the file. Files written with NumPy 1 refer to `scalar` by the second name.
_SCALAR = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")),
]


class FileWeights(dict[str, Tensor]):
    """Weights by name, as a file has them.

    Attributes:
        note: a sentence that says which weights were chosen where the file holds several; else None.
    """

    note: str | None = None


def read_weights(path: Path, key: str | None = None) -> FileWeights:
    """Return the weights in a ``.safetensors`` file, a file of ``torch.save``, or a folder in the hub's layout.

    Files of timm's and ConvNeXt's training scripts hold several things under keys, often raw and EMA weights. All are
    read with ``weights_only=True``: tensors and plain values only, nothing in the file is executed.

    Args:
        path: the file or folder.
        key: which weights to take; None for the EMA weights if the file has them, else the only ones.

    Raises:
        UserError: there is no such file, it holds no weights, or `key` does not select one set of weights.
    """
    path = _weights_file(path)
    content = _read(path)
    several = {name: value for name, value in content.items() if _holds_weights(value)}
    if key is not None:
        if key not in several:
            reason = (
                f"its weights are under {_listed(several)}" if several else "it holds one set, so leave the key out"
            )
            raise UserError(f"{path} has no weights under model.weights_key={key}: {reason}")
        return _tensors(several[key], path)
    known = [name for name in _KEYS if name in several]
    if not known and any(isinstance(value, Tensor) for value in content.values()):
        return _tensors(content, path)
    if not known and len(several) > 1:
        raise UserError(f"{path} holds weights under {_listed(several)}: choose one with model.weights_key=KEY")
    if not several:
        raise UserError(f"{path} holds no weights")
    chosen, *others = known or list(several)
    weights = _tensors(several[chosen], path)
    if others:
        weights.note = (
            f"loading {chosen} from {path.name}, which also holds {_listed(others)}; "
            f"model.weights_key={others[0]} selects the other"
        )
    return weights


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file or of one in a folder; nothing for other files.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    path = _weights_file(path)
    with _reading(path):
        if not _is_safetensors(path):
            return {}
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}


def fit_weights(model: nn.Module, weights: dict[str, Tensor], origin: str, new_head: bool = True) -> list[str]:
    """Load `weights` into `model`; return a sentence for each choice that was made and each weight that was not loaded.

    Prefixes of wrappers are removed. Names of the architecture's original code are renamed to timm's, and tensors whose
    shape depends on the resolution are resized, both by timm's own filter for the architecture. With `new_head`, a head
    that is missing or is for another number of classes stays as it is initialised. Everything else must fit.

    Raises:
        UserError: a weight is missing, of the wrong shape, not of floating point, NaN or infinite; names the first one.
    """
    notes = [weights.note] if isinstance(weights, FileWeights) and weights.note else []
    own = model.state_dict()
    head = [name for name in own if name.startswith(tuple(f"{layer}." for layer in _classifiers(model)))]
    given = _without_prefixes(weights, own)
    if not _fits(given, own, but=head):
        given, resized = _adapted(model, given, own)
        notes += resized
    fitted = {name: given[name] for name in own if name in given}
    for name, value in own.items():
        if name.endswith("num_batches_tracked"):
            fitted.setdefault(name, value)  # files older than PyTorch 0.4.1 lack this counter, which nothing here reads
        elif new_head and name in head and name not in given:
            notes.append(f"{name}: not in {origin}; a new head is trained")
            fitted[name] = value
        elif new_head and name in head and given[name].shape[0] != value.shape[0]:
            there, here = given[name].shape[0], value.shape[0]
            notes.append(f"{name}: {there} classes in {origin}, {here} here; a new head is trained")
            fitted[name] = value
    for name, value in own.items():
        if name not in fitted:
            raise UserError(f"{origin} has no {name}: these are not weights of this model")
        if fitted[name].shape != value.shape:
            raise UserError(_misfit(name, fitted[name], value, origin))
        _check_numbers(name, fitted[name], value, origin)
    notes += [f"{name}: not part of this model" for name in given if name not in own]
    model.load_state_dict(fitted)
    return notes


def _weights_file(path: Path) -> Path:
    """Return the file to read, which in a folder is the preferred one of the hub's layout."""
    if path.is_dir():
        path = next((path / name for name in _HUB_FILES if (path / name).is_file()), path)
    if not path.exists():
        raise UserError(f"there is no weights file {path}")
    if path.is_dir():
        raise UserError(f"{path} is a folder without {' or '.join(_HUB_FILES)}: give a weights file")
    if not path.is_file():  # reading a FIFO would wait for a writer for ever
        raise UserError(f"{path} is not a file: give a weights file")
    return path


def _read(path: Path) -> dict[Any, Any]:
    with _reading(path):
        if _is_safetensors(path):
            return dict(safetensors.torch.load_file(path))
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of tensors and of pickles, which are read or refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    return content if isinstance(content, dict) else {}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever reading a weights file raises into a UserError."""
    try:
        yield
    except Exception as error:  # torch.load raises errors of several kinds for a pickle that it does not accept
        named = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        if named:
            raise UserError(f"{path} holds more than weights ({_shown(named[1])}), so it is not loaded") from None
        raise UserError(
            f"{path} cannot be read as weights ({first_line(error)}): it is damaged or not a weights file"
        ) from None


def _is_safetensors(path: Path) -> bool:
    """Return whether a file has safetensors' ending, or its beginning: the length of a JSON object, then the object."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < _LARGEST_HEADER


def _holds_weights(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(one, Tensor) for one in value.values())


def _tensors(values: dict[Any, Any], path: Path) -> FileWeights:
    weights = FileWeights({str(name): value for name, value in values.items() if isinstance(value, Tensor)})
    for name, value in weights.items():
        if value.is_meta:
            raise UserError(f"{_shown(name)} in {path} is a meta tensor, which has no values: save the model's weights")
        if value.is_quantized or value.is_nested or value.layout != torch.strided:
            kind = "quantized" if value.is_quantized else "nested" if value.is_nested else "sparse"
            raise UserError(f"{_shown(name)} in {path} is a {kind} tensor: save it as a dense one of floating point")
    return weights


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the model's classifier layers; distilled models have two."""
    names = cast(dict[str, Any], model.default_cfg)["classifier"]
    return (names,) if isinstance(names, str) else tuple(names or ())


def _without_prefixes(weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without the prefixes of wrappers, in whatever order these were nested."""
    for prefix in _PREFIXES:
        wrapped = sum(name.startswith(prefix) for name in weights)
        # Other parts may lie beside a wrapped model, e.g. a loss or a counter, so not every name has the prefix.
        if 2 * wrapped > len(weights) and not any(name.startswith(prefix) for name in own):
            return _without_prefixes({name.removeprefix(prefix): value for name, value in weights.items()}, own)
    return dict(weights)


def _fits(weights: dict[str, Tensor], own: dict[str, Tensor], but: Iterable[str]) -> bool:
    return all(name in weights and weights[name].shape == own[name].shape for name in own.keys() - set(but))


def _adapted(
    model: nn.Module, weights: dict[str, Tensor], own: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights as timm's filter for the architecture changes them, and a note if it resized some."""
    module = sys.modules[type(model).__module__]
    adapt: Callable[..., dict[str, Tensor]] | None = getattr(module, "checkpoint_filter_fn", None)
    if adapt is None:
        return weights, []
    try:
        adapted = adapt(dict(weights), model)
    except Exception:  # weights of another architecture; the caller names the first one that does not fit
        return weights, []
    resized = [
        name
        for name, value in own.items()
        if name in weights and name in adapted and weights[name].shape != value.shape == adapted[name].shape
    ]
    if not resized:
        return adapted, []
    more = f" and {len(resized) - 1} more" if len(resized) > 1 else ""
    change = f"from {_shape(weights[resized[0]])} to {_shape(own[resized[0]])}"
    return adapted, [f"{resized[0]}{more}: resized {change} for another resolution"]


def _misfit(name: str, there: Tensor, here: Tensor, origin: str) -> str:
    shapes = f"{name} is {_shape(there)} there and {_shape(here)} here"
    if any(part in name for part in _RESOLUTION_DEPENDENT):
        return (
            f"{origin} was trained at another resolution ({shapes}), and timm cannot resize it for this model: "
            f"set input.size to the resolution of the weights"
        )
    return f"{origin} does not fit this model: {shapes}; is model.name the model it was trained with?"


def _check_numbers(name: str, there: Tensor, here: Tensor, origin: str) -> None:
    """Refuse what the model cannot compute with. Other floating-point types are converted; counters are integers."""
    kind = str(there.dtype).removeprefix("torch.")
    if there.is_complex() or (here.is_floating_point() and not there.is_floating_point()):
        raise UserError(f"{name} in {origin} is {kind}, not floating point: save the weights as float32")
    try:
        converted = there.to(here.dtype)
    except RuntimeError:  # torch only stores some types of 4 bits
        raise UserError(f"{name} in {origin} is {kind}, which torch cannot convert: save it as float32") from None
    # The weights in a meta model's head have no values.
    if not converted.is_meta and not converted.isfinite().all():
        raise UserError(f"{name} in {origin} is NaN or infinite: give other weights, e.g. of an earlier checkpoint")


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "one number"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(str, names))


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, shortened, or its class where that is of no use."""
    lines = str(error).strip().splitlines()
    # torch's messages about this argument advise to run what is in the file.
    return _shown(lines[0][:200]) if lines and "weights_only" not in str(error) else type(error).__name__


def _shown(text: str) -> str:
    """Return text from a file without the characters that would control a terminal."""
    return "".join(one if one.isprintable() else "?" for one in text)
