"""Exports a model as a graph that runs without its Python code: ONNX, or torch's own .pt2.

The graph takes float32 RGB images ``[n, 3, size, size]`` with values from 0 to 1, for any n. It normalises them itself
and returns logits, float32 ``[n, classes]``. Resizing and cropping are left to the caller; the file's metadata say how.
"""

import json
import logging
import math
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from data.atomic_io import replacing
from data.images.evaluation_view import WARP_FROM
from launcher.evaluation.saved_weights import SavedWeights
from recipes.errors import UserError
from recipes.schema import Recipe

GRAPH_ENDINGS = (".onnx", ".pt2")
_COMPARED = (1, 3)  # batch sizes at which the graph is compared with torch
_TOLERANCE = 1e-3  # of the largest logit; libraries sum in another order, and a wrong graph differs by far more
_LARGEST_ONNX = 2**31 - 2**24  # bytes; protobuf's limit of 2 GiB, less the graph itself
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


class _Normalised(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, recipe: Recipe):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(recipe.input.mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(recipe.input.std).reshape(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model((images - self.mean) / self.std)
        return logits


def write_graph(recipe: Recipe, weights: SavedWeights, model: nn.Module, destination: Path) -> float:
    """Write the model as a graph and compare it with torch; return the largest difference of a logit.

    Args:
        recipe: of the model; gives size and normalisation.
        weights: for the metadata.
        model: the network with these weights, in evaluation mode.
        destination: ends in .onnx or .pt2.

    Raises:
        UserError: a package is missing, the model cannot be traced, the graph computes something else, or the file
            cannot be written.
    """
    onnx = destination.suffix == ".onnx"
    if onnx and (missing := [name for name in _NEEDED if find_spec(name) is None]):
        raise UserError(f"an ONNX export needs {', '.join(missing)}: run `pip install 'bigbatch[onnx]'`")
    if onnx and (size := sum(tensor.nbytes for tensor in weights.tensors.values())) > _LARGEST_ONNX:
        raise UserError(
            f"the weights have {size / 2**30:.1f} GiB, and one ONNX file holds less than 2: export a .pt2 file instead"
        )
    whole = _Normalised(model, recipe).eval()
    size = recipe.input.evaluated_size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    metadata = {
        "classes": json.dumps(weights.classes),
        "input": json.dumps({"range": [0, 1], "channels": "RGB", "normalised": "inside"} | _view(recipe)),
        "recipe": json.dumps(recipe.to_dict()),
        "weights": str(weights.kind),
        "step": str(weights.step),
    }
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with replacing(destination) as temporary:
            (_write_onnx if onnx else _write_pt2)(whole, images, temporary, metadata)
            return _compare(whole, size, temporary, onnx)
    except OSError as error:
        raise UserError(f"{destination} cannot be written ({error}): choose another file") from None


def _view(recipe: Recipe) -> dict[str, object]:
    """Return how an evaluation resizes and crops an image."""
    size = recipe.input.evaluated_size
    view: dict[str, object] = {"size": size, "interpolation": recipe.input.evaluated_interpolation}
    if recipe.input.upright:
        view["upright"] = "turned as the EXIF orientation says, before the resize"
    if size >= WARP_FROM:
        return view | {"resize": "to a square, without a crop"}
    return view | {"resize": f"shorter side to {math.floor(size / recipe.input.eval_crop)}, then crop the centre"}


def _traced(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad():
            return torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # whatever tracing raises for code that it does not understand
        raise UserError(
            f"torch cannot trace the model for any number of images ({str(error).splitlines()[0]}): export a "
            f".safetensors file instead"
        ) from None


def _write_pt2(model: nn.Module, images: Tensor, path: Path, metadata: dict[str, str]) -> None:
    with path.open("wb") as file:  # torch insists on the ending of a path
        torch.export.save(_traced(model, images), file, extra_files=metadata)


def _write_onnx(model: nn.Module, images: Tensor, path: Path, metadata: dict[str, str]) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own deprecated parts
        program = torch.onnx.export(
            _traced(model, images), (), input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(path)


def _compare(model: nn.Module, size: int, path: Path, onnx: bool) -> float:
    """Return the largest difference between the graph's logits and the model's.

    Raises:
        UserError: it is larger than rounding explains.
    """
    generator, largest = torch.Generator().manual_seed(1), 0.0
    run = _onnx_runner(path) if onnx else _pt2_runner(path)
    for count in _COMPARED:
        images = torch.rand(count, 3, size, size, generator=generator)
        with torch.no_grad():
            expected = model(images)
        difference = (run(images) - expected).abs().max().item()
        if not difference <= _TOLERANCE * max(1.0, expected.abs().max().item()):
            raise UserError(
                f"the exported graph differs from torch by {difference:.2g} in a logit of {count} images, so it is not "
                f"kept: export a .safetensors file instead"
            )
        largest = max(largest, difference)
    return largest


def _onnx_runner(path: Path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _pt2_runner(path: Path):
    with path.open("rb") as file:
        return torch.export.load(file).module()
