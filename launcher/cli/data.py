"""The commands that write and check data sets: shard, verify."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.options import Import, on_this_machine
from recipes.errors import UserError

data = typer.Typer()
_PANEL = "Recipes and data"
_IMAGE_SIZES = "Image sizes"


@data.command(epilog="Example: bigbatch shard digits shards/digits --val-fraction 0.2", rich_help_panel=_PANEL)
def shard(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder with one folder per class, or a zip or tar of it; Kaggle's cats-vs-dogs zip; "
            "ImageNet or CIFAR-10 as distributed; WebDataset shards; `torchvision:NAME:ROOT`; or `digits`, "
            "which scikit-learn contains; or `NAME:LOCATION` of a source that `--import` registers.",
        ),
    ],
    destination: Annotated[str, typer.Argument(metavar="FOLDER", help="The folder of shards to write.")],
    val_fraction: Annotated[
        float,
        typer.Option(help="Share of the images for validation, if the source has no validation split.", min=0, max=1),
    ] = 0.1,
    class_map: Annotated[
        Path | None,
        typer.Option(
            callback=on_this_machine,
            help="A file that maps folder names to class names or numbers.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        list[Path] | None,
        typer.Option(
            callback=on_this_machine,
            help="A table of labels: CSV, TSV, JSON, parquet or a list. May be repeated.",
            show_default=False,
        ),
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="The table's column of image names, if the guess is wrong.", show_default=False)
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="The table's column of labels, if the guess is wrong.", show_default=False)
    ] = None,
    modules: Import = None,
    shard_size: Annotated[int, typer.Option(help="Approximate size of a shard in MiB.", min=1, max=2**20)] = 256,
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode images. Default: one per CPU.", min=1)
    ] = None,
    shortest_side: Annotated[
        int | None,
        typer.Option(help="Shrink images whose shorter side has more pixels.", min=1, rich_help_panel=_IMAGE_SIZES),
    ] = None,
    longest_side: Annotated[
        int | None,
        typer.Option(help="Shrink images whose longer side has more pixels.", min=1, rich_help_panel=_IMAGE_SIZES),
    ] = None,
    quality: Annotated[
        int,
        typer.Option(
            help="JPEG quality of images that are encoded again.", min=1, max=100, rich_help_panel=_IMAGE_SIZES
        ),
    ] = 95,
    upright: Annotated[
        bool,
        typer.Option("--upright", help="Turn images as their EXIF orientation says.", rich_help_panel=_IMAGE_SIZES),
    ] = False,
) -> None:
    """Write a data set as WebDataset shards with an index. The same command resumes after an interruption."""
    from data.sources.recognition import LabelTables
    from data.writing.sharding import shard as write_shards

    if (image_column or label_column) and not labels:
        raise UserError("--image-column and --label-column name columns of a table: give the table with --labels")
    write_shards(
        source,
        destination,
        val_fraction=val_fraction,
        shard_size=shard_size * 2**20,
        shortest_side=shortest_side,
        longest_side=longest_side,
        quality=quality,
        upright=upright,
        class_map=class_map,
        labels=LabelTables(tuple(labels), image_column, label_column) if labels else None,
        modules=modules or [],
        workers=workers,
    )


@data.command(epilog="Example: bigbatch verify shards/digits", rich_help_panel=_PANEL)
def verify(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Folder or URL of shards that `bigbatch shard` wrote.")
    ],
) -> None:
    """Read every shard and print what is damaged. The exit code is 1 if anything is."""
    from data.writing.verify import verify as find_problems

    problems = find_problems(folder)
    for problem in problems:
        print(problem)
    print(f"{folder}: {f'{len(problems)} problems' if problems else 'no problems, every file is as it was written'}")
    raise typer.Exit(1 if problems else 0)
