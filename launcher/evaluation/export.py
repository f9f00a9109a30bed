"""`bigbatch export`: writes weights of a run in a form that other programs load without bigbatch."""

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import nn

from data.atomic_io import replacing
from launcher.evaluation.export_folder import write_folder
from launcher.evaluation.export_graph import GRAPH_ENDINGS, write_graph
from launcher.evaluation.saved_weights import SavedWeights, recipe_for_images, run_weights
from launcher.runs.metrics import TOP1_KEYS
from launcher.runs.output_file import check_output
from launcher.runs.run_directory import RunDirectory
from models.build import build
from models.weights import fit_weights
from recipes.errors import UserError
from recipes.local_paths import local_path


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        weights: the weights in it.
        accuracies: top-1 that training measured at their step on the validation split, by kind of weights.
        difference: largest difference of a logit between an exported graph and torch; None for weights alone.
    """

    weights: SavedWeights
    accuracies: dict[str, float]
    difference: float | None = None


def export(
    run: RunDirectory, destination: Path, ema: bool = True, step: int | None = None, best: bool = False
) -> Export:
    """Write weights of a run to `destination`, whose name decides the form.

    ``.safetensors`` holds the weights under the names of timm's model, with recipe and class names as metadata;
    ``.onnx`` and ``.pt2`` hold a graph (`launcher.evaluation.export_graph`); a name without an ending is a folder that
    timm loads (`launcher.evaluation.export_folder`). The arguments after `destination` are those of `run_weights`.

    Raises:
        UserError: there is no such run or checkpoint, the name has another ending, it is part of a run
            (`launcher.runs.output_file`), or it cannot be written.
    """
    destination = local_path(destination)
    kind, files = destination.suffix, (".safetensors", *GRAPH_ENDINGS)
    if destination.is_dir() and kind not in files:
        kind = ""  # a folder such as weights.v2
    if kind and kind not in files:
        raise UserError(
            f"an export is a folder or a file that ends in .safetensors, .onnx or .pt2, and {destination} is neither: "
            f"name it {destination.with_suffix('.safetensors')}"
        )
    check_output(destination, files)
    weights = run_weights(run, ema, step, best)
    accuracies, difference = accuracies_at(run, weights.step), None
    if kind == ".safetensors":
        _write_safetensors(run, weights, destination)
    elif kind in GRAPH_ENDINGS:
        difference = write_graph(recipe_for_images(run), weights, _model(run, weights), destination)
    else:
        write_folder(run, weights, _model(run, weights), destination, accuracies)
    return Export(weights, accuracies, difference)


def accuracies_at(run: RunDirectory, step: int | None) -> dict[str, float]:
    """Return the top-1 accuracy that training measured at that step on the validation split, by kind of weights."""
    evaluations = [event for event in run.metrics.events() if event["event"] == "evaluation" and event["step"] == step]
    measured = {kind: evaluations[-1].get(key) for kind, key in TOP1_KEYS.items()} if evaluations else {}
    return {kind: top1 for kind, top1 in measured.items() if top1 is not None}


def _model(run: RunDirectory, weights: SavedWeights) -> nn.Module:
    """Return the network with the weights, in evaluation mode on the CPU."""
    model = build(run.recipe(), len(weights.classes or []))
    fit_weights(model, weights.tensors, str(weights.origin), new_head=False)
    return model.eval()


def _write_safetensors(run: RunDirectory, weights: SavedWeights, destination: Path) -> None:
    metadata = {
        "format": "pt",
        "recipe": json.dumps(recipe_for_images(run).to_dict()),
        "classes": json.dumps(weights.classes),
        "weights": str(weights.kind),
        "step": str(weights.step),
    }
    tensors = {name: tensor.contiguous() for name, tensor in weights.tensors.items()}
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with replacing(destination) as temporary:
            safetensors.torch.save_file(tensors, temporary, metadata)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{destination} cannot be written ({error}): choose another file") from None
