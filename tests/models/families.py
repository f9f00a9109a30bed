"""Trains one model of each of timm's architecture families, and writes the table in docs/models.md.

python -m tests.models.families          prints the table; takes minutes
python -m tests.models.families --write  also writes it into docs/models.md
"""

import argparse
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from models.prepared import PreparedModel, prepare_model
from models.weights import first_line
from recipes.errors import UserError
from recipes.load import load
from recipes.schema import Recipe

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- families: written by `python -m tests.models.families --write` -->\n", "<!-- end of families -->\n"
TRAINS = "trains"
CLASSES, BATCH, STATISTICS, STEPS = 5, 8, 4, 2
_SIZES = (32, 64, 96, 112, 128, 160, 192, 224, 256)  # tried in this order


class Family(NamedTuple):
    """One row of the table: a module of timm, an example of it, and whether that trains."""

    name: str
    models: int
    example: str
    size: int
    outcome: str


def recipe_for(model: str, size: int) -> Recipe:
    """Return a recipe that gives a model its own defaults, with `STATISTICS` images per statistics batch."""
    values = {
        "model.name": model,
        "model.drop_path": 0,
        "model.layer_scale": "null",
        "model.init_std": "null",
        "input.size": size,
        "batch.global": BATCH,
        "batch.slices": BATCH // STATISTICS,
        "data.classes": CLASSES,
    }
    return load("demo", [f"{key}={value}" for key, value in values.items()])


def check(model: str, size: int) -> None:
    """Train a model for two steps at two cuts, and load its weights into timm's own model.

    Everything is float64, in which rounding is far below any difference that a cut could make by mistake.

    Raises:
        UserError: the model is refused.
        AssertionError: the cuts differ, or timm's model computes something else.
    """
    recipe = recipe_for(model, size)
    outcomes = []
    for micro_batch in (BATCH, STATISTICS):
        prepared = prepare_model(recipe, CLASSES)
        outcomes.append((_trained(prepared, micro_batch, size), prepared.module))
    (losses, module), (others, other) = outcomes
    torch.testing.assert_close(others, losses, rtol=1e-9, atol=1e-12, msg="the losses of two cuts differ: {}".format)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-6, atol=1e-9, msg=f"{{}} {name}".format)
    options = {"img_size": size} if timm.get_pretrained_cfg(model).fixed_input_size else {}
    plain = timm.create_model(model, num_classes=CLASSES, **options).double()
    plain.load_state_dict(module.state_dict(), strict=True)
    images = _images(size)
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(images), plain.eval()(images))


def _images(size: int) -> Tensor:
    return torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _trained(prepared: PreparedModel, micro_batch: int, size: int) -> Tensor:
    """Return the losses of `STEPS` steps of SGD, float64 ``[STEPS]``."""
    module = prepared.module.double().train()
    images, labels = _images(size), torch.arange(BATCH) % CLASSES
    optimizer, losses = torch.optim.SGD(module.parameters(), lr=1e-3), []
    for step in range(STEPS):
        losses.append(torch.zeros((), dtype=torch.float64))
        for positions in torch.arange(BATCH).split(micro_batch):
            prepared.drop_path.draw(step, positions)
            logits = module(images[positions])
            loss = nn.functional.cross_entropy(logits, labels[positions], reduction="sum") / BATCH
            loss.backward()
            losses[-1] += loss.detach()
            if prepared.bn_stats:
                prepared.bn_stats.add(micro_batch // STATISTICS)
        if prepared.bn_stats:
            prepared.bn_stats.update(lambda tensor: tensor)
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(losses)


def survey(module: str) -> Family:
    """Return the row of one of timm's modules: its smallest model, at the smallest size at which it runs."""
    models = timm.list_models(module=module)
    example = min(models, key=_parameters)
    own_size = timm.get_pretrained_cfg(example).input_size[-1]
    size, refused = 0, ""
    for size in (*_SIZES, own_size):
        try:
            check(example, size)
        except (UserError, ValueError, RuntimeError) as error:  # e.g. one pixel is too few for BatchNorm
            refused = first_line(error)
        except AssertionError as error:
            return Family(module, len(models), example, size, f"differs: {first_line(error)}")
        else:
            return Family(module, len(models), example, size, TRAINS)
    return Family(module, len(models), example, size, refused)


def family_names() -> list[str]:
    """Return the modules of timm that define models; ours, and those of other tests, are registered beside them."""
    return sorted(name for name in timm.list_modules() if find_spec(f"timm.models.{name}"))


def rows() -> list[Family]:
    """Return the table in docs/models.md."""
    table = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return [Family(name, int(models), example, int(size), outcome) for name, models, example, size, outcome in cells]


def write(families: list[Family]) -> None:
    """Write the table into docs/models.md."""
    lines = [f"| {' | '.join(map(str, family))} |\n" for family in families]
    header = "| family | models | example | pixels | outcome |\n|---|--:|---|--:|---|\n"
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + header + "".join(lines) + END + rest.partition(END)[2])


def _parameters(model: str) -> int:
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in timm.create_model(model).parameters())
    except Exception:  # some models need values to be built
        return sys.maxsize


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("family", nargs="*", help="a module of timm.models; all if none is given")
    options.add_argument("--write", action="store_true", help="write the table into docs/models.md")
    chosen = options.parse_args()
    found = []
    for module in chosen.family or family_names():
        found.append(survey(module))
        print(*found[-1], flush=True)
    if chosen.write:
        write(sorted({row.name: row for row in [*rows(), *found]}.values()))


if __name__ == "__main__":
    main()
