"""Speeds that `bigbatch plan --calibrate` measured, kept in ``~/.config/bigbatch/speeds.json`` with their sources."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from data.atomic_io import write_durably
from recipes.errors import UserError
from recipes.schema import Recipe
from slurm.cluster import user_settings

# Images of 407 × 357 pixels, decoded and augmented at 224 pixels, on the slower of two machines (below the table of
# docs/measurements/data-speed.md). The key says whether RandAugment is on.
_IMAGES_PER_CORE = {True: 439.0, False: 867.0}


class Measurement(NamedTuple):
    """A number and its source: "assumed", "given", or when and with what it was measured."""

    value: float
    source: str


@dataclass
class Device:
    """A kind of GPU, or the CPU: achieved TFLOP/s by precision, then by `model_key`."""

    memory_gib: float
    tflops: dict[str, dict[str, Measurement]] = field(default_factory=dict)

    def tflops_for(self, recipe: Recipe) -> dict[str, Measurement]:
        """Return TFLOP/s by precision, measured with the recipe's model or else with the model that was fastest."""
        return {
            precision: measurements.get(model_key(recipe)) or max(measurements.values(), key=lambda found: found.value)
            for precision, measurements in self.tflops.items()
        }


@dataclass
class Speeds:
    """All measured speeds: devices by kind, and images/s of one loader process by `data_key`."""

    devices: dict[str, Device] = field(default_factory=dict)
    images_per_core: dict[str, Measurement] = field(default_factory=dict)


def model_key(recipe: Recipe) -> str:
    """Return the name under which a device's speed with the recipe's model is kept."""
    return f"{recipe.model.name} at {recipe.input.size} px"


def data_key(recipe: Recipe) -> str:
    """Return the name under which the speed of reading the recipe's images is kept."""
    return f"{recipe.data.name} at {recipe.input.size} px, {_with_randaugment(recipe)}"


def speeds_file() -> Path:
    """Return the path of the file of speeds, which lies beside the profiles of clusters."""
    return user_settings() / "speeds.json"


def load_speeds() -> Speeds:
    """Return the measured speeds; empty where nothing was measured.

    Raises:
        UserError: the file cannot be read.
    """
    file = speeds_file()
    try:
        values = json.loads(file.read_text())
        devices = {
            name: Device(
                float(device["memory_gib"]),
                {precision: _measurements(found) for precision, found in device["tflops"].items()},
            )
            for name, device in values["devices"].items()
        }
        return Speeds(devices, _measurements(values["images_per_core"]))
    except FileNotFoundError:
        return Speeds()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): remove it, and measure again with `bigbatch plan --calibrate`"
        ) from None


def images_per_core(recipe: Recipe) -> Measurement:
    """Return the images/s that one loader process prepares for a recipe, measured or from the table of the docs."""
    key, with_randaugment = data_key(recipe), recipe.augment.randaugment is not None
    if found := load_speeds().images_per_core.get(key):
        return found
    return Measurement(
        _IMAGES_PER_CORE[with_randaugment], f"docs/measurements/data-speed.md, {_with_randaugment(recipe)}"
    )


def _with_randaugment(recipe: Recipe) -> str:
    return "without RandAugment" if recipe.augment.randaugment is None else "with RandAugment"


def save_speeds(speeds: Speeds) -> None:
    """Write the file of speeds atomically.

    Raises:
        UserError: it cannot be written.
    """
    file = speeds_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_durably(file, json.dumps(asdict(speeds), indent=1).encode())
    except OSError as error:
        raise UserError(
            f"{file} cannot be written ({error.strerror}): set XDG_CONFIG_HOME to a folder that can be written"
        ) from None


def measured_today(value: float, setting: str) -> Measurement:
    """Return a measurement whose source names today's date and the setting."""
    return Measurement(float(f"{value:.4g}"), f"measured {time.strftime('%Y-%m-%d')} with {setting}")


def _measurements(found: dict[str, tuple[float, str]]) -> dict[str, Measurement]:
    measurements = {key: Measurement(float(value), str(source)) for key, (value, source) in found.items()}
    if not all(measurement.value > 0 for measurement in measurements.values()):
        raise ValueError("a speed is not above 0")
    return measurements
