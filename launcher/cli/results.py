"""The commands that use trained weights: evaluate, predict, features, export, report."""

import json
from pathlib import Path
from typing import Annotated

import typer

from data.printable_text import one_line, printable
from data.progress import say
from launcher.cli.completion import catalogue_names, run_directories
from launcher.cli.options import DataOption, Import, Overrides, SplitName, Step, Workers, on_this_machine, with_data
from launcher.runs.run_directory import RunDirectory, find_run
from launcher.world import this_process
from recipes.errors import UserError

results = typer.Typer()
_PANEL = "Training and results"

WeightsArgument = Annotated[
    Path,
    typer.Argument(
        callback=on_this_machine,
        metavar="RUN|CHECKPOINT|WEIGHTS",
        help="A run directory, a checkpoint in one (RUN/checkpoints/step-00000033), or a weights file.",
        show_default=False,
        autocompletion=run_directories,
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        help="The recipe of a weights file that does not name its recipe itself.", autocompletion=catalogue_names
    ),
]
UprightOption = Annotated[
    bool,
    typer.Option(
        "--upright",
        help="Turn images as their EXIF orientation says. Weights of runs that saw upright images do so by themselves.",
    ),
]
RawOption = Annotated[bool, typer.Option("--raw", help="Use a run's raw weights instead of its EMA weights.")]


@results.command(epilog="Example: bigbatch evaluate runs/demo --data shards/digits", rich_help_panel=_PANEL)
def evaluate(
    weights: WeightsArgument,
    overrides: Overrides = None,
    data: DataOption = None,
    recipe: RecipeOption = None,
    modules: Import = None,
    raw: Annotated[bool, typer.Option("--raw", help="Evaluate only a run's raw weights, not its EMA weights.")] = False,
    step: Step = None,
    split: Annotated[SplitName, typer.Option(help="The split to evaluate. No split is augmented.")] = SplitName.val,
    subset: Annotated[
        bool,
        typer.Option(
            "--subset",
            help="The shards have some of the model's classes (ImageNet-A, -R): leave out its other outputs.",
        ),
    ] = False,
    right_labels: Annotated[
        str | None,
        typer.Option(
            metavar="real|FILE",
            help="Also count images with several right labels: ImageNet's reassessed labels, or a JSON file of class "
            "names by image name.",
            show_default=False,
        ),
    ] = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Print precision, recall and F1 of every class.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    workers: Workers = None,
) -> None:
    """Print the accuracy over a whole split, every image once, with 95 % intervals and the calibration error (ECE)."""
    _check_weights(weights, step)
    from launcher.cli.evaluation_output import print_results
    from launcher.evaluation.evaluate import EvaluateOptions
    from launcher.evaluation.evaluate import evaluate as evaluate_weights

    options = EvaluateOptions(not raw, workers, step, split.value, modules or [], subset, right_labels)
    found = evaluate_weights(weights, recipe, with_data(overrides, data), options)
    if this_process().is_main:
        print_results(found, as_json, per_class)


@results.command(epilog="Example: bigbatch predict runs/demo photograph.jpg --json", rich_help_panel=_PANEL)
def predict(
    weights: WeightsArgument,
    images: Annotated[
        list[Path],
        typer.Argument(callback=on_this_machine, metavar="IMAGE|FOLDER", help="Images, or folders of images."),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line, with the five most likely classes.")
    ] = False,
    recipe: RecipeOption = None,
    modules: Import = None,
    raw: RawOption = False,
    step: Step = None,
    workers: Workers = None,
    upright: UprightOption = False,
) -> None:
    """Print the class and probability of each image. The exit code is 1 if an image cannot be read."""
    _check_weights(weights, step)
    from launcher.evaluation.predict import predict as predict_images

    predictions = predict_images(
        weights, images, recipe, ema=not raw, workers=workers, step=step, modules=modules or [], upright=upright
    )
    unreadable = [prediction for prediction in predictions if prediction.error is not None]
    for prediction in predictions:
        if as_json:
            print(json.dumps(prediction.to_dict(), ensure_ascii=False))
        elif prediction.error is None:
            label, probability = prediction.likeliest[0]
            print(one_line(f"{probability:7.2%}  {label}  {printable(str(prediction.image))}"))
    for prediction in unreadable:
        say(f"unreadable: {printable(str(prediction.image))} ({prediction.error})")
    if unreadable:
        say(f"{len(unreadable):,} of {len(predictions):,} images could not be read")
    raise typer.Exit(1 if unreadable else 0)


@results.command(epilog="Example: bigbatch features runs/demo shards/digits digits.npz", rich_help_panel=_PANEL)
def features(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="RUN|CHECKPOINT|WEIGHTS|MODEL",
            help="A run directory, a checkpoint in one, a weights file, or a timm model with pretrained weights.",
            autocompletion=run_directories,
        ),
    ],
    data: Annotated[
        str,
        typer.Argument(
            metavar="SHARDS|FOLDER",
            help="Folder or URL of shards, of which all splits are read; or a folder of images.",
        ),
    ],
    destination: Annotated[
        Path, typer.Argument(callback=on_this_machine, metavar="FILE", help="The .npz file to write.")
    ],
    recipe: RecipeOption = None,
    modules: Import = None,
    raw: RawOption = False,
    step: Step = None,
    workers: Workers = None,
    upright: UprightOption = False,
) -> None:
    """Write the features of images, which are the input of the classifier, with their ids to a NumPy file.

    For shards, the file has the labels and the names of the classes too.

    The exit code is 1 if an image of a folder cannot be read.
    """
    from launcher.evaluation.features import write_features

    images, values, unreadable = write_features(
        weights,
        data,
        destination,
        recipe,
        ema=not raw,
        step=step,
        workers=workers,
        modules=modules or [],
        upright=upright,
    )
    print(f"wrote {destination}: {images:,} images with {values:,} features each")
    if unreadable:
        say(f"{unreadable:,} of {images + unreadable:,} images could not be read")
    raise typer.Exit(1 if unreadable else 0)


@results.command(epilog="Example: bigbatch export runs/demo runs/demo.safetensors", rich_help_panel=_PANEL)
def export(
    run: Annotated[
        Path,
        typer.Argument(
            callback=on_this_machine,
            metavar="RUN|CHECKPOINT",
            help="A run directory, or a checkpoint in one.",
            show_default=False,
            autocompletion=run_directories,
        ),
    ],
    destination: Annotated[
        Path,
        typer.Argument(
            callback=on_this_machine,
            metavar="FILE|FOLDER",
            help="What to write: a .safetensors, .onnx or .pt2 file, or a folder that timm loads.",
        ),
    ],
    raw: RawOption = False,
    step: Step = None,
    best: Annotated[
        bool,
        typer.Option("--best", help="Export the weights, raw or EMA, that reached the best evaluation of the run."),
    ] = False,
) -> None:
    """Write a run's weights for programs without bigbatch: a safetensors file, a folder for timm, ONNX or .pt2."""
    found = _check_weights(run, step)
    if found is None:
        raise UserError(f"{run} is not a run directory: only the weights of a run can be exported")
    directory, step = found
    if best and step is not None:
        raise UserError("--best chooses the step itself: leave out the other one")
    from launcher.evaluation.export import export as write_export
    from launcher.runs.intervals import with_interval

    written = write_export(directory, destination, ema=not raw, step=step, best=best)
    images = directory.metadata().dataset.val_images
    reached = [f"{kind} top-1 {with_interval(top1, images)}" for kind, top1 in written.accuracies.items()]
    print(f"wrote {destination}: the {written.weights.title} ({', '.join(reached) or 'not evaluated at this step'})")
    if written.difference is not None:
        print(f"its logits differ from torch's by at most {written.difference:.1e}")


@results.command(epilog="Example: bigbatch report runs/demo --out runs/report.html", rich_help_panel=_PANEL)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            callback=on_this_machine, metavar="RUN", help="One or more run directories.", autocompletion=run_directories
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(callback=on_this_machine, help="The HTML file to write. Default: report.html in the first run."),
    ] = None,
) -> None:
    """Write one self-contained HTML page with curves and recipe, and a comparison if there are several runs."""
    from launcher.runs.report import write_report

    print(f"wrote {write_report(runs, out or runs[0] / 'report.html')}")


def _check_weights(weights: Path, step: int | None) -> tuple[RunDirectory, int | None] | None:
    """Return what `find_run` finds; refuse what is not there before torch is imported, which takes seconds."""
    found = find_run(weights, step)
    if found:
        found[0].recipe()
    return found
