"""What the average of the weights (EMA) costs: in the optimizer's state, as here, against timm's ModelEmaV3 beside the model.

    python -m tests.benchmarks.average_of_weights [--model convnext_tiny] [--steps 30]

Both average after every update of the same AdamW; nothing else is done in the timed steps, so the figure is the cost of averaging itself.
Bytes are those of the average that one process of `--procs` holds under ZeRO, and in a copy of the model. On a GPU if there is one.
"""

import argparse
import statistics
import time

import timm
import torch
from timm.utils import ModelEmaV3

from launcher.engines.optimizer import EMA, make_optimizer
from recipes.load import load


def updates(
    model_name: str, decay: float | None, with_timm: bool, steps: int, device: torch.device
) -> tuple[list[float], int]:
    """Seconds of each update, and bytes of the average."""
    recipe = load("convnext_tiny_in1k", [f"ema.decay={'null' if decay is None else decay}"])
    model = timm.create_model(model_name).to(device)
    optimizer = make_optimizer(model, recipe)
    beside = ModelEmaV3(model, decay=0.9999, foreach=True) if with_timm else None
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    seconds = []
    for _ in range(steps):
        _wait(device)
        started = time.perf_counter()
        optimizer.step()
        if beside:
            beside.update(model)
        _wait(device)
        seconds.append(time.perf_counter() - started)
    averages = (
        [state[EMA] for state in optimizer.state.values() if EMA in state]
        if not beside
        else list(beside.module.state_dict().values())
    )
    return seconds[3:], sum(average.numel() * average.element_size() for average in averages)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--procs", type=int, default=8)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = {"no average": (None, False), "in the optimizer's state": (0.9999, False), "timm's ModelEmaV3": (None, True)}
    found = {title: updates(arguments.model, *row, arguments.steps, device) for title, row in rows.items()}
    plain = statistics.median(found["no average"][0])
    for title, (seconds, held) in found.items():
        shared = held / arguments.procs if title != "timm's ModelEmaV3" else held
        print(
            f"{title}: {statistics.median(seconds) * 1e3:.2f} ms an update ({statistics.median(seconds) / plain:.2f} of none), "
            f"{held / 2**20:.0f} MiB under DDP, {shared / 2**20:.0f} MiB a process under ZeRO on {arguments.procs}"
        )


if __name__ == "__main__":
    main()
