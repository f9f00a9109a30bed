"""`bigbatch export`: writes weights of a run to a safetensors file that timm loads without bigbatch."""

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
    """Write weights of a run to `destination`, under the names of timm's model, and return them.

    The file's metadata hold recipe, class names, step and kind of the weights, so that `bigbatch evaluate` and
    `bigbatch predict` need nothing else. The arguments after `destination` are those of `run_weights`.

    Raises:
        UserError: there is no such run or checkpoint, the file does not end in .safetensors, or it cannot be written.
    """
    if destination.suffix != ".safetensors":
        name = destination.with_suffix(".safetensors") if destination.name else "weights.safetensors"
        raise UserError(f"an export is a safetensors file, and {destination} does not end in that: name it {name}")
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
