"""The `bigbatch` command. Each command imports what it needs when it runs, so that `--help` is instant."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.entry import run_app
from launcher.cli.jobs import jobs
from launcher.cli.options import DataOption, MicroBatch, Overrides, RecipeArgument, Workers, with_data
from launcher.cli.plan import planning
from launcher.world import this_process
from recipes.errors import UserError

_INTERRUPTED = 130  # the shell's code for Ctrl-C

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Large-batch image-classification recipes: the batch belongs to the recipe, the hardware only decides how it is cut.",
)


@app.command(epilog="Example: bigbatch recipes convnext_tiny_in1k optimizer.lr=2e-3")
def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe, to print it in full.")] = None,
    overrides: Overrides = None,
):
    """List the recipes, or print one in full with every default spelled out."""
    from launcher.cli.recipes import print_recipe, print_table

    print_recipe(name, overrides or []) if name else print_table()


@app.command(epilog="Example: bigbatch shard digits shards/digits --val-fraction 0.2")
def shard(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder with a folder per class or a zip or tar of one, Kaggle's cats-vs-dogs zip, ImageNet or CIFAR-10 as "
            "distributed, WebDataset shards, `torchvision:NAME:ROOT`, or `digits`."
        ),
    ],
    destination: Annotated[Path, typer.Argument(help="The folder to make.")],
    val_fraction: Annotated[
        float, typer.Option(help="Share kept for validation where the source has no split.", min=0, max=0.9)
    ] = 0.1,
    shard_size: Annotated[int, typer.Option(help="Size of a shard in MiB, about.", min=1)] = 256,
    shortest_side: Annotated[
        int | None, typer.Option(help="Shrink images whose shorter side is longer, in pixels.", min=1)
    ] = None,
    longest_side: Annotated[
        int | None, typer.Option(help="Shrink images whose longer side is longer, in pixels.", min=1)
    ] = None,
    quality: Annotated[int, typer.Option(help="JPEG quality of shrunk images.", min=1, max=100)] = 95,
    class_map: Annotated[
        Path | None, typer.Option(help="A file that maps folder names to class names or numbers.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; all CPUs if not given.", min=1)] = None,
):
    """Turn photographs into WebDataset shards with an index. Interrupted, it goes on where it stopped."""
    from data.writing.sharding import shard as write_shards

    write_shards(
        source,
        destination,
        val_fraction=val_fraction,
        shard_size=shard_size * 2**20,
        shortest_side=shortest_side,
        longest_side=longest_side,
        quality=quality,
        class_map=class_map,
        workers=workers,
    )


@app.command(epilog="Example: bigbatch verify shards/digits")
def verify(folder: Annotated[Path, typer.Argument(help="A folder made by `bigbatch shard`.")]):
    """Read every shard again and name what is broken; exits with 1 if anything is."""
    from data.writing.verify import verify as find_problems

    problems = find_problems(folder)
    for problem in problems:
        print(problem)
    print(f"{folder}: {f'{len(problems)} problems' if problems else 'everything is as it was written'}")
    raise typer.Exit(1 if problems else 0)


@app.command(epilog="Example: bigbatch train demo --data shards/digits --procs 2 optimizer.lr=2e-3")
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    data: DataOption = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the run is kept; if there is one, it goes on. Default: runs/RECIPE.")
    ] = None,
    procs: Annotated[int | None, typer.Option(help="Processes on this machine. Default: one per GPU.", min=1)] = None,
    micro_batch: MicroBatch = None,
    workers: Workers = None,
    profile: Annotated[
        int | None,
        typer.Option(help="Record that many micro-batches: what takes the time, and a trace, in RUN/profile.", min=1),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only check recipe and shards, and print the cut of the batch and, with ZeRO, DeepSpeed's JSON.",
        ),
    ] = False,
):
    """Train a recipe, or go on with its run at the exact step. Ctrl-C saves first."""
    resolved = _load(recipe, overrides, data)
    run_path = run_dir or Path("runs") / resolved.name
    if dry_run:
        from launcher.planning.dry_run import print_dry_run

        return print_dry_run(resolved, procs, micro_batch)
    from launcher.recipe_shards import check_names_shards

    check_names_shards(resolved)
    world = this_process()
    if world.is_launched:
        if procs is not None:
            raise UserError(
                "--procs starts processes, but a launcher (torchrun, accelerate) started this one already: leave it out"
            )
        procs = 1
    elif procs is None:
        import torch

        procs = max(1, torch.cuda.device_count())
    if procs > 1:
        from launcher.processes import run_processes

        options = {
            "--data": data,
            "--run-dir": run_dir,
            "--micro-batch": micro_batch,
            "--workers": workers,
            "--profile": profile,
        }
        given = [str(part) for option, value in options.items() if value is not None for part in (option, value)]
        code = run_processes("launcher.train", [recipe, *(overrides or []), *given], procs)
    else:
        from launcher.training.train import train as train_here

        try:
            code = 0 if train_here(resolved, run_path, micro_batch, workers, profile=profile) else _INTERRUPTED
        except KeyboardInterrupt:  # before the first step, or the second Ctrl-C
            code = _INTERRUPTED
            if world.is_main:
                print(f"stopped at once, without saving: {_begins_again(run_path)}", file=sys.stderr)
    if code == _INTERRUPTED and not world.is_launched:
        print(f"go on with: {shlex.join(['bigbatch', *sys.argv[1:]])}", file=sys.stderr)
    raise typer.Exit(code)


@app.command(epilog="Example: bigbatch evaluate runs/demo --data shards/digits")
def evaluate(
    weights: Annotated[Path, typer.Argument(metavar="RUN|WEIGHTS", help="A run directory, or a weights file.")],
    overrides: Overrides = None,
    data: DataOption = None,
    recipe: Annotated[
        str | None, typer.Option(help="The recipe of a weights file that does not say it itself.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Only the raw weights of a run, not the averaged ones.")] = False,
    workers: Workers = None,
):
    """Accuracy over the whole validation split, every image once."""
    _check_exists(weights)
    from launcher.evaluation.evaluate import evaluate_weights

    evaluate_weights(weights, recipe, with_data(overrides, data), averaged=not raw, workers=workers)


@app.command(epilog="Example: bigbatch predict runs/demo photograph.jpg --json")
def predict(
    weights: Annotated[Path, typer.Argument(metavar="RUN|WEIGHTS", help="A run directory, or a weights file.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...|FOLDER", help="Photographs, or folders of them.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, with the five likeliest classes.")
    ] = False,
    recipe: Annotated[
        str | None, typer.Option(help="The recipe of a weights file that does not say it itself.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The raw weights of a run instead of the averaged ones.")] = False,
    workers: Workers = None,
):
    """Class and probability of photographs. Exits with 1 if any could not be read; the others are predicted all the same."""
    _check_exists(weights)
    from launcher.evaluation.predict import predict as predict_images

    predictions = predict_images(weights, images, recipe, averaged=not raw, workers=workers)
    unreadable = [prediction for prediction in predictions if prediction.error is not None]
    for prediction in predictions:
        if as_json:
            print(json.dumps(prediction.to_dict(), ensure_ascii=False))
        elif prediction.error is None:
            label, probability = prediction.likeliest[0]
            print(f"{probability:7.2%}  {label}  {prediction.image}")
    for prediction in unreadable:
        print(f"unreadable: {prediction.image} ({prediction.error})", file=sys.stderr)
    if unreadable:
        print(f"{len(unreadable):,} of {len(predictions):,} photographs could not be read", file=sys.stderr)
    raise typer.Exit(1 if unreadable else 0)


@app.command(epilog="Example: bigbatch export runs/demo runs/demo.safetensors")
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    destination: Annotated[Path, typer.Argument(metavar="FILE", help="The .safetensors file to write.")],
    raw: Annotated[bool, typer.Option("--raw", help="The raw weights instead of the averaged ones.")] = False,
    best: Annotated[
        bool, typer.Option("--best", help="Of the best evaluation instead of the newest checkpoint.")
    ] = False,
):
    """Write a run's weights for `timm.create_model(name, num_classes=...).load_state_dict(...)`."""
    from launcher.runs.run_directory import RunDirectory

    RunDirectory(run).recipe()  # a wrong name is refused before torch is imported, which takes seconds
    from launcher.evaluation.saved_weights import export as write_weights

    write_weights(run, destination, averaged=not raw, best=best)
    print(f"wrote {destination}")


@app.command(epilog="Example: bigbatch report runs/demo --out runs/report.html")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="One or more run directories.")],
    out: Annotated[Path | None, typer.Option(help="The page to write. Default: report.html in the first run.")] = None,
):
    """Write one self-contained HTML page: curves, recipe, and a comparison where there are several runs."""
    from launcher.runs.report import write_report

    print(f"wrote {write_report(runs, out or runs[0] / 'report.html')}")


@app.command(epilog="Example: bigbatch fingerprint demo --data shards/digits --procs 3 --micro-batch 20 --steps 2")
def fingerprint(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    data: DataOption = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps to print.", min=1)] = 3,
    start: Annotated[int, typer.Option("--from-step", help="The first of them.", min=0)] = 0,
    procs: Annotated[int, typer.Option(help="As if cut over so many processes.", min=1)] = 1,
    micro_batch: MicroBatch = None,
    workers: Workers = 0,
):
    """Print a digest of all inputs of each step: the same on any machine, at any cut."""
    from launcher.training.fingerprint import fingerprints

    for step, digest in fingerprints(
        _load(recipe, overrides, data), range(start, start + steps), procs, micro_batch, workers
    ):
        print(f"step {step}  {digest}", flush=True)


app.add_typer(jobs)
app.add_typer(planning)


def main() -> None:
    """Run the `bigbatch` command."""
    run_app(app)


def _begins_again(run: Path) -> str:
    """Where a run that was not saved at its end goes on."""
    from launcher.checkpoints.checkpoint import saved_steps
    from launcher.runs.run_directory import RunDirectory

    steps = saved_steps(RunDirectory(run).checkpoints)
    return (
        f"the newest checkpoint is of step {max(steps)}"
        if steps
        else "there is no checkpoint yet, so the run begins anew"
    )


def _check_exists(weights: Path) -> None:
    """Refuse what is not there, before torch is imported, which takes seconds."""
    if not weights.exists():
        raise UserError(
            f"there is no run or weights file {weights}: give a run directory, or a file from `bigbatch export`"
        )


def _load(recipe: str, overrides: list[str] | None, data: str | None):
    from recipes.load import load

    return load(recipe, with_data(overrides, data))
