"""Speeds that `bigbatch plan --calibrate` measured, kept in ``~/.config/bigbatch/speeds.json``, and where each is from."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from data.atomic_io import write_durably
from recipes.errors import UserError
from recipes.schema import Recipe
from slurm.cluster import user_settings

# Photographs of 407 x 357 pixels at 224, on the slower of two hardware: below the table of docs/data.md.
_IMAGES_PER_CORE = {True: 439.0, False: 867.0}  # with RandAugment or without


class Measurement(NamedTuple):
    """A number and where it is from: "assumed", "given", or what was measured when."""

    value: float
    source: str


@dataclass
class Device:
    """A kind of GPU, or the CPU: achieved TFLOP/s by precision and by what was trained."""

    memory_gib: float
    tflops: dict[str, dict[str, Measurement]] = field(default_factory=dict)

    def reached(self, recipe: Recipe) -> dict[str, Measurement]:
        """By precision: what it reached with the recipe's model, or else with the model that it was fastest with."""
        return {
            precision: figures.get(trained(recipe)) or max(figures.values(), key=lambda figure: figure.value)
            for precision, figures in self.tflops.items()
        }


@dataclass
class Speeds:
    """All that was measured."""

    devices: dict[str, Device] = field(default_factory=dict)
    images_per_core: dict[str, Measurement] = field(default_factory=dict)  # by what was read


def trained(recipe: Recipe) -> str:
    """What decides how fast a device trains a recipe."""
    return f"{recipe.model.name} at {recipe.input.size} px"


def read(recipe: Recipe) -> str:
    """What decides how fast a core prepares a recipe's images."""
    return f"{recipe.data.name} at {recipe.input.size} px, {_with_randaugment(recipe)}"


def file_of_speeds() -> Path:
    """Where they are kept, beside the profiles of clusters."""
    return user_settings() / "speeds.json"


def measured() -> Speeds:
    """What the user's file holds; nothing, where there is none.

    Raises:
        UserError: it cannot be read.
    """
    file = file_of_speeds()
    try:
        values = json.loads(file.read_text())
        devices = {
            name: Device(
                float(device["memory_gib"]),
                {precision: _figures(found) for precision, found in device["tflops"].items()},
            )
            for name, device in values["devices"].items()
        }
        return Speeds(devices, _figures(values["images_per_core"]))
    except FileNotFoundError:
        return Speeds()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): remove it, and measure again with `bigbatch plan --calibrate`"
        ) from None


def images_per_core(recipe: Recipe) -> Measurement:
    """Images/s that one loader process prepares for a recipe."""
    of_table = Measurement(
        _IMAGES_PER_CORE[recipe.augment.randaugment is not None], f"docs/data.md, {_with_randaugment(recipe)}"
    )
    return measured().images_per_core.get(read(recipe), of_table)


def _with_randaugment(recipe: Recipe) -> str:
    return "without RandAugment" if recipe.augment.randaugment is None else "with RandAugment"


def keep(speeds: Speeds) -> None:
    """Write the user's file, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    file = file_of_speeds()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_durably(file, json.dumps(asdict(speeds), indent=1).encode())
    except OSError as error:
        raise UserError(
            f"{file} cannot be written ({error.strerror}): set XDG_CONFIG_HOME to a folder that can"
        ) from None


def measured_now(value: float, with_what: str) -> Measurement:
    """A figure measured today."""
    return Measurement(float(f"{value:.4g}"), f"measured {time.strftime('%Y-%m-%d')} with {with_what}")


def _figures(found: dict) -> dict[str, Measurement]:
    figures = {what: Measurement(float(value), str(source)) for what, (value, source) in found.items()}
    if not all(figure.value > 0 for figure in figures.values()):
        raise ValueError("a speed is not above 0")
    return figures
