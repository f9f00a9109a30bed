"""The commands that predict memory, time and the worth of a batch size: plan, batchsize."""

from typing import Annotated

import typer

from launcher.cli.completion import run_directories
from launcher.cli.options import Import, Overrides, RecipeArgument, load_recipe, print_lr_note, with_data
from recipes.errors import UserError
from recipes.local_paths import local_path

planning = typer.Typer()
_ASSUMPTIONS = "Values to use instead of the assumed ones"
_FAILURES = "Failures"
_MEASURING = "Measuring"


@planning.command(
    epilog="Example: bigbatch plan convnext_tiny_in1k --gpus 16 --gpus-per-node 8 --gpu a100",
    rich_help_panel="Planning and jobs",
)
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    modules: Import = None,
    gpus: Annotated[int, typer.Option(help="GPUs on all nodes; each runs one process.", min=1)] = 8,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of one node.", min=1)] = 8,
    gpu: Annotated[
        str,
        typer.Option(
            help="Kind of GPU: v100, v100-32, t4, a10, l4, l40s, a100, a100-80, h100, h200, b200, rtx3090, rtx4090, "
            "rtx5090, or one that was calibrated. The driver's name works too, e.g. A100-SXM4-80GB."
        ),
    ] = "a100",
    cpus_per_gpu: Annotated[
        int, typer.Option(help="CPU cores per GPU; all but one of them run loader processes.", min=1)
    ] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            help="Memory of one GPU, e.g. 80GiB. Default: as usual for the kind.", rich_help_panel=_ASSUMPTIONS
        ),
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            help="TFLOP/s that large matrix products reach. Default: as calibrated, or the data sheet's.",
            min=0.01,
            rich_help_panel=_ASSUMPTIONS,
        ),
    ] = None,
    network: Annotated[
        float | None,
        typer.Option(help="GB/s of a node's network. Default: 25.", min=0.01, rich_help_panel=_ASSUMPTIONS),
    ] = None,
    mtbf_hours: Annotated[
        float | None,
        typer.Option(
            help="Mean hours between failures of one GPU with its share of the node. Adds how often to save.",
            min=0.01,
            rich_help_panel=_FAILURES,
        ),
    ] = None,
    save_stall: Annotated[
        float,
        typer.Option(
            help="Seconds for which a save stops training, as in the run's metrics.", min=0, rich_help_panel=_FAILURES
        ),
    ] = 5.0,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Measure this machine for about a minute. Later plans use the measured rates.",
            rich_help_panel=_MEASURING,
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Shards whose images are counted, and whose reading --calibrate measures too. "
            "Default: as many images as the recipe's own data set has.",
        ),
    ] = None,
) -> None:
    """Predict what fits the GPUs, how the batch is cut and how long training takes. It needs no GPU and no data."""
    resolved = load_recipe(recipe, overrides, data, modules)
    if calibrate:
        from launcher.planning.calibration import calibrate as measure

        measure(resolved)
        return
    from launcher.planning.plan_output import print_plan
    from launcher.planning.plan_request import PlanRequest

    request = PlanRequest(gpus, gpus_per_node, gpu, gpu_memory, tflops, cpus_per_gpu, network, mtbf_hours, save_stall)
    if not as_json:
        print_lr_note(resolved)
    print_plan(resolved, request, [recipe, *with_data(overrides, data)], as_json)


@planning.command(
    epilog="Example: bigbatch batchsize runs/convnext_tiny_in1k --gpus 64 --gpu h100",
    rich_help_panel="Planning and jobs",
)
def batchsize(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|RECIPE",
            help="A run, whose measured noise scale is used, or a recipe together with --noise-scale.",
            show_default=False,
            autocompletion=run_directories,
        ),
    ],
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(help="GPUs on all nodes; each runs one process.", min=1)] = 8,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of one node.", min=1)] = 8,
    gpu: Annotated[str, typer.Option(help="Kind of GPU, as in `bigbatch plan`.")] = "a100",
    noise_scale: Annotated[
        float | None,
        typer.Option(help="Noise scale in images. Default: as the run measured it at its end.", min=1),
    ] = None,
) -> None:
    """Compare batch sizes: steps, images, GPU-hours and time to the same loss, and the learning rate of each."""
    from launcher.planning.batch_sizes import noise_scale_of, print_batch_sizes
    from launcher.planning.plan_request import PlanRequest
    from launcher.recipe_shards import planned_images
    from launcher.runs.run_directory import RunDirectory
    from recipes.load import override
    from recipes.schedule import StepSchedule

    path, request = local_path(source), PlanRequest(gpus, gpus_per_node, gpu)
    if path.is_dir():
        run = RunDirectory(path)
        recipe = override(run.recipe(), overrides or [])
        images, classes = run.metadata().dataset.train_images, len(run.metadata().dataset.classes)
        recipe = recipe.variant(data={"classes": classes})
        noise = noise_scale_of(path) if noise_scale is None else noise_scale
    else:
        recipe = load_recipe(source, overrides, None)
        planned = planned_images(recipe)
        if noise_scale is None or planned is None:
            raise UserError(
                f"the recipe {source} has no measured noise scale or number of images: give a run of it, or "
                f"--noise-scale and data.train_images or data.path"
            )
        images, noise = planned, noise_scale
    print_lr_note(recipe)
    print_batch_sizes(recipe, StepSchedule(recipe, images).total_steps, noise, request)
