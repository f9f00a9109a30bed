"""Exports weights as a folder in the layout of Hugging Face's hub, which timm loads by itself."""

import json
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import timm
import yaml
from torch import nn

from data.atomic_io import write_atomically
from data.images.evaluation_view import WARP_FROM
from launcher.evaluation.saved_weights import SavedWeights, recipe_for_images
from launcher.runs.intervals import with_interval
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError
from recipes.schema import Recipe

_WEIGHTS, _CONFIG, _CARD = "model.safetensors", "config.json", "README.md"


def write_folder(
    run: RunDirectory, weights: SavedWeights, model: nn.Module, destination: Path, accuracies: dict[str, float]
) -> None:
    """Write weights, timm's configuration and a model card for ``timm.create_model("local-dir:FOLDER")``.

    Args:
        run: where the weights come from.
        weights: to write.
        model: the network with these weights.
        destination: the folder; made if it is missing.
        accuracies: top-1 accuracy on the validation split at the weights' step, by kind of weights.

    Raises:
        UserError: plain timm has no such model, the folder holds something else, or it cannot be written.
    """
    recipe = run.recipe()
    _check_timm_has(recipe.model.name)
    if destination.is_dir() and (others := {path.name for path in destination.iterdir()} - {_WEIGHTS, _CONFIG, _CARD}):
        raise UserError(f"{destination} holds other files (e.g. {min(others)}): name a new folder for the export")
    tensors = {name: tensor.contiguous() for name, tensor in weights.tensors.items()}
    try:
        destination.mkdir(parents=True, exist_ok=True)
        write_atomically(destination / _WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))
        config = _timm_config(recipe, model, weights.classes or [])
        write_atomically(destination / _CONFIG, json.dumps(config, indent=2, ensure_ascii=False).encode())
        write_atomically(destination / _CARD, _model_card(run, weights, accuracies).encode())
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{destination} cannot be written ({error}): choose another folder") from None


def _check_timm_has(name: str) -> None:
    module = timm.models.model_entrypoint(name).__module__
    if not module.startswith("timm."):
        raise UserError(
            f"model {name} is registered by {module}, so timm alone cannot make it: export a .safetensors, .onnx or "
            f".pt2 file instead of a folder"
        )


def _timm_config(recipe: Recipe, model: nn.Module, classes: list[str]) -> dict[str, Any]:
    """Return the contents of ``config.json``, as timm's own exports have it."""
    timm_model, own = cast(Any, model), cast(Any, model).default_cfg
    size = recipe.input.evaluated_size
    warp = size >= WARP_FROM
    return {
        "architecture": recipe.model.name,
        "num_classes": len(classes),
        "num_features": timm_model.num_features,
        "label_names": classes,
        "model_args": {"img_size": size} if own.get("fixed_input_size") else {},
        "pretrained_cfg": {
            "tag": "bigbatch",
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": bool(own.get("fixed_input_size")),
            "interpolation": recipe.input.evaluated_interpolation,
            "crop_pct": 1.0 if warp else recipe.input.eval_crop,
            "crop_mode": "squash" if warp else "center",
            "mean": list(recipe.input.mean),
            "std": list(recipe.input.std),
            "num_classes": len(classes),
            "first_conv": own.get("first_conv"),
            "classifier": own["classifier"],
        },
    }


def _model_card(run: RunDirectory, weights: SavedWeights, accuracies: dict[str, float]) -> str:
    recipe, metadata = recipe_for_images(run), run.metadata()
    classes, data = weights.classes or [], metadata.dataset
    measured = [
        f"| {kind} | {with_interval(top1, data.val_images)} |" for kind, top1 in accuracies.items() if data.val_images
    ]
    table = ["| Weights | Top-1, validation split (95 % interval) |", "|---|--:|", *measured] if measured else []
    lines = [
        "---",
        yaml.safe_dump({"library_name": "timm", "tags": ["image-classification", "timm", "bigbatch"]}).strip(),
        "---",
        f"# {recipe.model.name}, {recipe.name}",
        "",
        recipe.summary or "An image classifier.",
        "",
        f"{metadata.model.parameters:,} parameters, {len(classes):,} classes.",
        "",
        "```python",
        "import timm",
        "",
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()',
        "config = timm.data.resolve_model_data_config(model)",
        "transform = timm.data.create_transform(**config, is_training=False)",
        "```",
        "",
        "The class names are `label_names` in `config.json`.",
        *(["Turn images with `PIL.ImageOps.exif_transpose` before the transform."] if recipe.input.upright else []),
        "",
        f"- Weights: {weights.kind}, after {weights.step:,} of {metadata.total_steps:,} steps"
        if weights.step is not None
        else f"- Weights: {weights.kind}",
        f"- Data: {data.name}, {data.train_images:,} training and {data.val_images:,} validation images",
        f"- Trained with: {', '.join(f'{name} {version}' for name, version in metadata.versions.items())}",
        "",
        *table,
        *(["", "These accuracies were measured during training, at the step of the weights."] if table else []),
        "",
        "## Recipe",
        "",
        "```yaml",
        yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True, width=100).strip(),
        "```",
        "",
    ]
    return "\n".join(lines)
