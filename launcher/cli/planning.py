"""The command that predicts memory and time: plan."""

from typing import Annotated

import typer

from launcher.cli.options import Import, Overrides, RecipeArgument, load_recipe, print_lr_note, with_data

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
            help="Kind of GPU: v100, t4, a10, l4, l40s, a100, a100-80, h100, h200, b200, rtx3090, rtx4090, rtx5090, "
            "or one that was calibrated."
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
        typer.Option("--data", help="Shards whose reading --calibrate measures too.", rich_help_panel=_MEASURING),
    ] = None,
) -> None:
    """Predict what fits the GPUs, how the batch is cut and how long training takes. It needs no GPU and no data."""
    resolved = load_recipe(recipe, overrides, data, modules)
    if calibrate:
        from launcher.planning.calibration import calibrate as measure

        measure(resolved)
        return
    from launcher.planning.plan_output import PlanRequest, print_plan

    request = PlanRequest(gpus, gpus_per_node, gpu, gpu_memory, tflops, cpus_per_gpu, network, mtbf_hours, save_stall)
    if not as_json:
        print_lr_note(resolved, recipe, overrides)
    print_plan(resolved, request, [recipe, *with_data(overrides, data)], as_json)
