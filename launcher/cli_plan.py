"""The part of the `bigbatch` command that predicts: plan."""

from typing import Annotated

import typer

planning = typer.Typer()


@planning.command(epilog="Example: bigbatch plan convnext_tiny_in1k --gpus 16 --gpus-per-node 8 --gpu a100")
def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name from `bigbatch recipes`, or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe.")] = None,
    gpus: Annotated[int, typer.Option(help="GPUs in all, one process each.", min=1)] = 8,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of one machine.", min=1)] = 8,
    gpu: Annotated[str, typer.Option(help="What kind: v100, a100, a100-80 or h100.")] = "a100",
    gpu_memory: Annotated[str | None, typer.Option(help="Memory of one, e.g. 80GiB. Default: the kind's.")] = None,
    tflops: Annotated[float | None, typer.Option(help="What one was measured to reach, instead of the table's assumption.", min=0.01)] = None,
    network: Annotated[float, typer.Option(help="Network of a node in GB/s; assumed, if not given.", min=0.01)] = 25.0,
    mtbf_hours: Annotated[float | None, typer.Option(help="Hours between failures of one GPU and its share of a node.", min=0.01)] = None,
    save_stall: Annotated[float, typer.Option(help="Seconds that saving a checkpoint stops training; a run's metrics name it.", min=0)] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
):
    """Say how a recipe would run: what fits, how it is cut, how long it takes. No GPU and no data are needed."""
    from launcher.plan_view import print_plan
    from recipes.load import load

    print_plan(load(recipe, overrides or []), gpus, gpus_per_node, gpu, gpu_memory, tflops, network, mtbf_hours, save_stall, as_json)
