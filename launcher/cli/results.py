"""The commands that use trained weights: evaluate, predict, export, report."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from data.names import printable
from launcher.cli.options import DataOption, Overrides, Workers, with_data
from recipes.errors import UserError

results = typer.Typer()
_PANEL = "Training and results"

WeightsArgument = Annotated[
    Path, typer.Argument(metavar="RUN|WEIGHTS", help="A run directory, or a weights file.", show_default=False)
]
RecipeOption = Annotated[
    str | None, typer.Option(help="The recipe of a weights file that does not name its recipe itself.")
]


@results.command(epilog="Example: bigbatch evaluate runs/demo --data shards/digits", rich_help_panel=_PANEL)
def evaluate(
    weights: WeightsArgument,
    overrides: Overrides = None,
    data: DataOption = None,
    recipe: RecipeOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Evaluate only a run's raw weights, not its EMA weights.")] = False,
    workers: Workers = None,
) -> None:
    """Print the accuracy over the whole validation split, every image once."""
    _check_exists(weights)
    from launcher.evaluation.evaluate import evaluate_weights

    evaluate_weights(weights, recipe, with_data(overrides, data), averaged=not raw, workers=workers)


@results.command(epilog="Example: bigbatch predict runs/demo photograph.jpg --json", rich_help_panel=_PANEL)
def predict(
    weights: WeightsArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...|FOLDER", help="Images, or folders of images.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line, with the five most likely classes.")
    ] = False,
    recipe: RecipeOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Use a run's raw weights instead of its EMA weights.")] = False,
    workers: Workers = None,
) -> None:
    """Print the class and probability of each image. The exit code is 1 if an image cannot be read."""
    _check_exists(weights)
    from launcher.evaluation.predict import predict as predict_images

    predictions = predict_images(weights, images, recipe, averaged=not raw, workers=workers)
    unreadable = [prediction for prediction in predictions if prediction.error is not None]
    for prediction in predictions:
        if as_json:
            print(_json_line(prediction.to_dict()))
        elif prediction.error is None:
            label, probability = prediction.likeliest[0]
            print(f"{probability:7.2%}  {label}  {printable(str(prediction.image))}")
    for prediction in unreadable:
        print(f"unreadable: {printable(str(prediction.image))} ({prediction.error})", file=sys.stderr)
    if unreadable:
        print(f"{len(unreadable):,} of {len(predictions):,} images could not be read", file=sys.stderr)
    raise typer.Exit(1 if unreadable else 0)


@results.command(epilog="Example: bigbatch export runs/demo runs/demo.safetensors", rich_help_panel=_PANEL)
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)],
    destination: Annotated[Path, typer.Argument(metavar="FILE", help="The .safetensors file to write.")],
    raw: Annotated[bool, typer.Option("--raw", help="Export the raw weights instead of the EMA weights.")] = False,
    best: Annotated[
        bool, typer.Option("--best", help="Export the checkpoint with the best evaluation instead of the newest.")
    ] = False,
) -> None:
    """Write a run's weights as a file for `timm.create_model(name, num_classes=...).load_state_dict(...)`."""
    from launcher.runs.run_directory import RunDirectory

    RunDirectory(run).recipe()  # refuses a wrong path before torch is imported, which takes seconds
    from launcher.evaluation.saved_weights import export as write_weights

    write_weights(run, destination, averaged=not raw, best=best)
    print(f"wrote {destination}")


@results.command(epilog="Example: bigbatch report runs/demo --out runs/report.html", rich_help_panel=_PANEL)
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="One or more run directories.")],
    out: Annotated[
        Path | None, typer.Option(help="The HTML file to write. Default: report.html in the first run.")
    ] = None,
) -> None:
    """Write one self-contained HTML page with curves and recipe, and a comparison if there are several runs."""
    from launcher.runs.report import write_report

    print(f"wrote {write_report(runs, out or runs[0] / 'report.html')}")


def _check_exists(weights: Path) -> None:
    """Raise UserError if the path does not exist, before torch is imported, which takes seconds."""
    if not weights.exists():
        raise UserError(
            f"there is no run or weights file {weights}: give a run directory, or a file from `bigbatch export`"
        )


def _json_line(value: dict[str, object]) -> str:
    """Return a JSON object in one line; in ASCII if a file name in it is not valid Unicode, which JSON can escape."""
    line = json.dumps(value, ensure_ascii=False)
    return line if _is_unicode(line) else json.dumps(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
