"""Speeds that `bigbatch plan --calibrate` measured, kept in ``~/.config/bigbatch/speeds.json`` with their sources."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from data.atomic_io import write_durably
from recipes.errors import UserError
from recipes.parsing import parse_json
from recipes.schema import Recipe
from slurm.cluster import user_settings

# Images of 407 × 357 pixels, decoded and augmented at 224 pixels, on the slower of two machines (below the table of
# docs/measurements/data-speed.md). The key says whether RandAugment is on.
_IMAGES_PER_CORE = {True: 439.0, False: 867.0}


class Measurement(NamedTuple):
    """A number and its source: "assumed", "given", or when and with what it was measured."""

    value: float
    source: str


@dataclass(frozen=True)
class Rates:
    """What training reaches on a device at one precision.

    Attributes:
        tflops: 1e12 multiplications and additions per second, in convolutions and matrix products.
        gb_per_second: 1e9 bytes per second between the device and its memory.
        source: as in `Measurement`.
    """

    tflops: float
    gb_per_second: float
    source: str

    @property
    def flops_per_second(self) -> float:
        return self.tflops * 1e12

    @property
    def bytes_per_second(self) -> float:
        return self.gb_per_second * 1e9


@dataclass
class Device:
    """A kind of GPU, or the CPU, with its measured rates by precision."""

    memory_gib: float
    rates: dict[str, Rates] = field(default_factory=dict)


@dataclass
class Speeds:
    """All measured speeds.

    Attributes:
        devices: by kind.
        images_per_core: of one loader process, by `data_key`.
        outdated: kinds that version 0.1 measured as one figure for each model, which nothing uses any more.
    """

    devices: dict[str, Device] = field(default_factory=dict)
    images_per_core: dict[str, Measurement] = field(default_factory=dict)
    outdated: list[str] = field(default_factory=list)


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
        values = parse_json(file.read_text())
        devices = {
            name: Device(float(device["memory_gib"]), _rates(device["rates"]))
            for name, device in values["devices"].items()
            if "rates" in device
        }
        outdated = [name for name in values["devices"] if name not in devices]
        return Speeds(devices, _measurements(values["images_per_core"]), outdated)
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
        kept = {key: value for key, value in asdict(speeds).items() if key != "outdated"}
        write_durably(file, json.dumps(kept, indent=1).encode())
    except OSError as error:
        raise UserError(
            f"{file} cannot be written ({error.strerror}): set XDG_CONFIG_HOME to a folder that can be written"
        ) from None


def measured_today(setting: str) -> str:
    """Return the source of a measurement: today's date and the setting."""
    return f"measured {time.strftime('%Y-%m-%d')} with {setting}"


def _rates(found: dict[str, dict]) -> dict[str, Rates]:
    rates = {
        precision: Rates(float(each["tflops"]), float(each["gb_per_second"]), str(each["source"]))
        for precision, each in found.items()
    }
    if not all(each.tflops > 0 and each.gb_per_second > 0 for each in rates.values()):
        raise ValueError("a speed is not above 0")
    return rates


def _measurements(found: dict[str, tuple[float, str]]) -> dict[str, Measurement]:
    measurements = {key: Measurement(float(value), str(source)) for key, (value, source) in found.items()}
    if not all(measurement.value > 0 for measurement in measurements.values()):
        raise ValueError("a speed is not above 0")
    return measurements
