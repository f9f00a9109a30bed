"""`bigbatch export`: weights of a run as one safetensors file that needs nothing of bigbatch."""

import json
from pathlib import Path

import safetensors
import safetensors.torch

from data.atomic_io import replacing
from launcher.evaluation.saved_weights import SavedWeights, run_weights
from launcher.runs.metrics import TOP1_KEYS
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError


def export(
    run: RunDirectory, destination: Path, ema: bool = True, step: int | None = None, best: bool = False
) -> SavedWeights:
    """Write weights of a run, chosen as `run_weights` says, which timm's model of that name loads; return them.

    Recipe, class names, step and kind of the weights go along in the file's metadata, so that `bigbatch evaluate` and
    `bigbatch predict` need nothing else.

    Raises:
        UserError: no such run or checkpoint, the file's name says another format, or it cannot be written.
    """
    if destination.suffix != ".safetensors":
        name = destination.with_suffix(".safetensors") if destination.name else "weights.safetensors"
        raise UserError(f"an export is a safetensors file and {destination} would not say so: name it {name}")
    recipe = run.recipe()
    weights = run_weights(run, ema, step, best)
    metadata = {
        "format": "pt",
        "recipe": json.dumps(recipe.to_dict()),
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
    return weights


def accuracies_at(run: RunDirectory, step: int | None) -> dict[str, float]:
    """Return the top-1 accuracy that training measured at that step on the validation split, by kind of weights."""
    evaluations = [event for event in run.metrics.events() if event["event"] == "evaluation" and event["step"] == step]
    measured = {kind: evaluations[-1].get(key) for kind, key in TOP1_KEYS.items()} if evaluations else {}
    return {kind: top1 for kind, top1 in measured.items() if top1 is not None}
