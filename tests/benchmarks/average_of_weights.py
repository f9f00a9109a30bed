"""The cost of the EMA of the weights: inside the optimizer's state, as here, and as timm's ModelEmaV3 beside the model.

    python -m tests.benchmarks.average_of_weights [--model convnext_tiny] [--steps 30] [--procs 8]

Both average after every update of the same AdamW, and the timed steps do nothing else. So the difference is the cost
of the EMA itself. Also printed: the bytes of the EMA that one of `--procs` processes holds under ZeRO, and the bytes
of a copy of the model. The script uses a GPU if there is one.
"""

import argparse
import statistics
import time

import timm
import torch
from timm.utils import ModelEmaV3

from launcher.engines.optimizer import EMA, make_optimizer
from recipes.load import load
from tests.benchmarks.rows import add_rows_option, is_measured, write_row


def updates(
    model_name: str, decay: float | None, with_timm: bool, steps: int, device: torch.device
) -> tuple[list[float], int]:
    """Return the seconds of each update, and the bytes of the EMA."""
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
    # The first updates allocate the state.
    return seconds[3:], sum(average.numel() * average.element_size() for average in averages)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--procs", type=int, default=8)
    add_rows_option(parser)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: dict[str, tuple[float | None, bool]] = {
        "no EMA": (None, False),
        "in the optimizer's state": (0.9999, False),
        "timm's ModelEmaV3": (None, True),
    }
    found = {title: updates(arguments.model, *row, arguments.steps, device) for title, row in rows.items()}
    plain = statistics.median(found["no EMA"][0])
    for title, (seconds, held) in found.items():
        shared = held / arguments.procs if title != "timm's ModelEmaV3" else held
        median = statistics.median(seconds)
        print(
            f"{title}: {median * 1e3:.2f} ms per update ({median / plain:.2f} times that without an EMA), "
            f"{held / 2**20:.0f} MiB under DDP, {shared / 2**20:.0f} MiB per process under ZeRO on {arguments.procs}"
        )
        if not is_measured(arguments.rows, EMA=title):
            write_row(arguments.rows, {"EMA": title, "ms": median * 1e3, "of an update without": median / plain})


if __name__ == "__main__":
    main()
