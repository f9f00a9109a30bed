"""The part of the `bigbatch` command that predicts: plan."""

from typing import Annotated

import typer

from launcher.cli.options import RecipeArgument, with_data

planning = typer.Typer()


@planning.command(epilog="Example: bigbatch plan convnext_tiny_in1k --gpus 16 --gpus-per-node 8 --gpu a100")
def plan(
    recipe: RecipeArgument,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe.")
    ] = None,
    gpus: Annotated[int, typer.Option(help="GPUs in all, one process each.", min=1)] = 8,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of one machine.", min=1)] = 8,
    gpu: Annotated[
        str, typer.Option(help="What kind: v100, a100, a100-80, h100, or one that was calibrated.")
    ] = "a100",
    gpu_memory: Annotated[str | None, typer.Option(help="Memory of one, e.g. 80GiB. Default: the kind's.")] = None,
    tflops: Annotated[
        float | None, typer.Option(help="What one reaches, instead of what is kept or assumed.", min=0.01)
    ] = None,
    cpus_per_gpu: Annotated[
        int, typer.Option(help="CPU cores beside each GPU; all but one prepare images.", min=1)
    ] = 8,
    network: Annotated[
        float | None, typer.Option(help="Network of a node in GB/s. Default: 25, assumed.", min=0.01)
    ] = None,
    mtbf_hours: Annotated[
        float | None, typer.Option(help="Hours between failures of one GPU and its share of a node.", min=0.01)
    ] = None,
    save_stall: Annotated[
        float, typer.Option(help="Seconds that a save stops training; a run's metrics name it.", min=0)
    ] = 5.0,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Measure this machine for a minute, and plan with what it reaches from then on."
        ),
    ] = False,
    data: Annotated[
        str | None, typer.Option("--data", help="With --calibrate: shards whose reading is measured too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
):
    """Say how a recipe would run: what fits, how it is cut, how long it takes. No GPU and no data are needed."""
    from recipes.load import load

    changes = with_data(overrides, data)
    resolved = load(recipe, changes)
    if calibrate:
        from launcher.planning.calibration import calibrate as measure

        return measure(resolved)
    from launcher.planning.plan_output import PlanRequest, print_plan

    asked = PlanRequest(gpus, gpus_per_node, gpu, gpu_memory, tflops, cpus_per_gpu, network, mtbf_hours, save_stall)
    print_plan(resolved, asked, [recipe, *changes], as_json)
