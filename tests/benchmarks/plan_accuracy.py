"""The plan beside training speeds that others measured on real GPUs: time, and which micro-batch fits.

    python -m tests.benchmarks.plan_accuracy [--fit] [MODEL ...]

The files `published_training_*.csv` beside this one name their sources. `--fit` finds the two constants of
`launcher.planning.gpus` on the first nine models of an RTX 3090, with least absolute error of the logarithm; all others
were never used for fitting. Models that bigbatch refuses are left out and named. It traces every model on the CPU,
which takes minutes; traces are cached as those of `bigbatch plan`.
"""

import argparse
import csv
import itertools
import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.cut import cut_batch
from launcher.planning.engine_rules import with_default_engine
from launcher.planning.gpus import GPUS
from launcher.planning.memory_model import GIB, predict_memory
from launcher.planning.model_profile import ModelProfile, profile_model
from launcher.planning.speeds import Rates
from launcher.planning.time_model import SECONDS_PER_OPERATION, update_seconds
from recipes.errors import UserError
from recipes.load import load
from recipes.schema import Recipe

_FOLDER = Path(__file__).parent
PUBLISHED, OTHER_CARDS = _FOLDER / "published_training_rtx3090.csv", _FOLDER / "published_training_nvidia.csv"
FITTED = 9  # models of the file that the constants were fitted on
CARD, PRECISION = "rtx3090", "fp16"
TFLOPS, GB_PER_SECOND = 71.0, 936.0  # of the card's data sheet


@dataclass(frozen=True)
class Published:
    """One published training speed.

    Attributes:
        fits: the micro-batch that ran.
        failed: the next larger one that was tried; None if there was none.
        card: as `bigbatch plan --gpu` names it.
    """

    model: str
    size: int
    images_per_second: float
    fits: int
    failed: int | None
    card: str = CARD
    precision: str = PRECISION


def published(path: Path = PUBLISHED) -> list[Published]:
    """Return the rows of a file in its order."""
    with path.open() as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return [
            Published(
                row["model"],
                int(row["size"]),
                float(row["images_per_second"]),
                int(row["fits"]),
                int(row["failed"]) if row["failed"] else None,
                row.get("card", CARD),
                row.get("precision", PRECISION),
            )
            for row in rows
        ]


def recipe_of(row: Published) -> Recipe:
    """Return a recipe of the published setting: SGD with momentum, no EMA, no stochastic depth, 1,000 classes."""
    return with_default_engine(
        load(
            "resnet50_in1k_classic",
            [
                f"model.name={row.model}",
                f"input.size={row.size}",
                f"engine.precision={row.precision}",
                "model.head_init_scale=1.0",
                "ema.decay=null",
                "batch.statistics=32",
                "batch.global=1536",
                "batch.slices=1",
            ],
        )
    )


def predicted_speed(row: Published, recipe: Recipe, profile: ModelProfile, rates: Rates) -> float:
    """Return the images/s that the plan predicts for one GPU with these rates."""
    seconds = profile.usual_pass.seconds(rates, row.fits, False, SECONDS_PER_OPERATION)
    return row.fits / (seconds + update_seconds(recipe, profile, rates, shards=1))


def predicted_peak(recipe: Recipe, profile: ModelProfile, micro_batch: int) -> float:
    """Return the GiB that the plan predicts for one GPU."""
    return predict_memory(recipe, profile, cut_batch(recipe, 1, micro_batch, micro_batch)).peak / GIB


def fit(rows: list[tuple[Published, Recipe, ModelProfile]]) -> tuple[float, float]:
    """Return the shares of the data sheet's arithmetic and bandwidth that predict the rows best."""

    def error(shares: tuple[float, float]) -> float:
        rates = Rates(TFLOPS * shares[0], GB_PER_SECOND * shares[1], "fitted")
        return sum(abs(math.log(predicted_speed(*row, rates) / row[0].images_per_second)) for row in rows)

    steps = [step / 40 for step in range(20, 41)]  # a card does not exceed its data sheet
    return min(itertools.product(steps, steps), key=error)


def profiled(rows: list[Published], models: list[str]) -> list[tuple[int, Published, Recipe, ModelProfile]]:
    """Return number, recipe and trace of each row, or of those of the given models; name the models left out."""
    found = []
    for number, row in enumerate(rows):
        if models and row.model not in models:
            continue
        recipe = recipe_of(row)
        try:
            found.append((number, row, recipe, profile_model(recipe, row.precision)))
        except UserError as error:
            print(f"left out: {row.model}, {error}")
    return found


def print_other_cards(models: list[str]) -> None:
    """Print the table of cards that the constants were not fitted on."""
    print("| card | precision | model | published images/s | predicted | ratio |")
    print("|---|---|---|---|---|---|")
    errors = []
    for _, row, recipe, profile in profiled(published(OTHER_CARDS), models):
        speed = predicted_speed(row, recipe, profile, GPUS[row.card].rates[row.precision])
        ratio = speed / row.images_per_second
        errors.append(max(ratio, 1 / ratio) - 1)
        print(
            f"| {row.card} | {row.precision} | {row.model} | {row.images_per_second:,.0f} | {speed:,.0f} "
            f"| {ratio:.2f} |"
        )
    if errors:
        print(f"{len(errors)} figures, median error {statistics.median(errors):.0%}, largest {max(errors):.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--fit", action="store_true")
    arguments = parser.parse_args()
    rows = profiled(published(), arguments.models)
    rates = GPUS[CARD].rates[PRECISION]
    if arguments.fit:
        shares = fit([found[1:] for found in rows if found[0] < FITTED])
        print(f"fitted shares of the data sheet: arithmetic {shares[0]:.3g}, bandwidth {shares[1]:.3g}")
        rates = replace(rates, tflops=TFLOPS * shares[0], gb_per_second=GB_PER_SECOND * shares[1])
    print("| model | published images/s | predicted | ratio | GiB at what fits | at what failed |")
    print("|---|---|---|---|---|---|")
    ratios: dict[bool, list[float]] = {True: [], False: []}
    brackets = []
    for number, row, recipe, profile in rows:
        speed = predicted_speed(row, recipe, profile, rates)
        ratios[number < FITTED].append(speed / row.images_per_second)
        fits = predicted_peak(recipe, profile, row.fits)
        failed = predicted_peak(recipe, profile, row.failed) if row.failed else None
        brackets.append(fits < 24 and (failed is None or failed > 24))
        shown = "" if failed is None else f"{failed:.1f}"
        print(
            f"| {row.model} | {row.images_per_second:,.0f} | {speed:,.0f} | {ratios[number < FITTED][-1]:.2f} "
            f"| {fits:.1f} | {shown} |"
        )
    for fitted, found in ratios.items():
        if found:
            errors = [max(ratio, 1 / ratio) - 1 for ratio in found]
            print(
                f"{'fitted' if fitted else 'others'}: {len(found)} models, "
                f"median error {statistics.median(errors):.0%}, largest {max(errors):.0%}"
            )
    print(f"24 GiB lie between what fitted and what failed for {sum(brackets)} of {len(brackets)} models")
    print_other_cards(arguments.models)


if __name__ == "__main__":
    main()
