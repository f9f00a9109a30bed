"""A profile of a few micro-batches and the update after them: a trace, a table, and what bounds the run in one sentence.

The loop marks what it does with the ranges named here. On a GPU, time is told apart by what runs on it; on a CPU by these ranges.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from launcher.cut import Cut

_PREFIX = "bigbatch: "
_COMMUNICATION = "nccl"
_WARM_STEPS = 2  # optimizer steps before the profile: their kernels are chosen, compiled and loaded for the first time
_ROWS = 20

Span = tuple[float, float]  # from, to


def marked(part: str) -> record_function:
    """The context of a part of a step: "data wait", "forward", "backward", "agreement" or "update"."""
    return record_function(_PREFIX + part)


@dataclass(frozen=True)
class Shares:
    """Where the time of an optimizer step goes, in seconds."""

    computing: float
    optimizer: float
    communication: float  # while nothing is computed
    data: float
    idle: float  # a device that has nothing to do although the data is there

    def table(self) -> str:
        """A line for each part, the largest first."""
        total = sum(vars(self).values())
        return "\n".join(
            f"{part:>14} {seconds * 1e3:10.1f} ms a step {seconds / total:7.1%}"
            for part, seconds in self._largest_first()
        )

    def sentence(self) -> str:
        """What bounds the run, and what would help."""
        (part, seconds), total = self._largest_first()[0], sum(vars(self).values())
        share = f"{seconds / total:.0%} of the time"
        if part != "data" and self.data > 0.1 * total:
            return f"{part} takes {share}, but {self.data / total:.0%} goes by waiting for data: {_HELP['data']}"
        return f"{_BOUND[part]} bounds this run, {share}: {_HELP[part]}"

    def _largest_first(self) -> list[tuple[str, float]]:
        return sorted(vars(self).items(), key=lambda item: -item[1])


_BOUND = {
    "computing": "the model's arithmetic",
    "optimizer": "the update of the weights",
    "communication": "waiting for other processes",
    "data": "waiting for data",
    "idle": "starting operations faster than the CPU can",
}
_HELP = {
    "computing": "more GPUs, engine.precision=bf16 or engine.compile=true would make it faster",
    "optimizer": "it is done once a step, so a larger batch.global has less of it; off-loaded, it is as slow as the CPU",
    "communication": "fewer processes with more micro-batches each, a lower ZeRO stage, or a faster network would have less of it",
    "data": "more CPU cores and --workers, smaller photographs (`bigbatch shard --shortest-side`) or faster storage would end it",
    "idle": "a larger --micro-batch or engine.compile=true gives the GPU more to do at a time",
}


class StepProfile:
    """Records `micro_batches` consecutive micro-batches, which end with the end of a step, and then writes what it found.

    Args:
        folder: where `trace.json.gz` (for Perfetto or chrome://tracing) and `profile.txt` are written.
        micro_batches: how many; more than a step has are rounded up to whole steps.
        say: prints a line for the user.
    """

    def __init__(self, folder: Path, micro_batches: int, cut: Cut, device: torch.device, say: Callable[[str], None]):
        self.folder, self.say, self.asked = folder, say, micro_batches
        self.on_gpu = device.type == "cuda"
        self.begin_anew(cut)

    def begin_anew(self, cut: Cut) -> None:
        """Count from here on, with steps of that cut."""
        self.accumulation = cut.accumulation
        self.steps = -(-self.asked // cut.accumulation)
        self.recorded = self.asked if self.steps == 1 else self.steps * cut.accumulation
        self.first = (_WARM_STEPS + self.steps) * cut.accumulation - self.recorded
        self.seen = 0
        self.profiler: profile | None = None

    def before_micro_batch(self) -> None:
        """Start recording if this is the first one to be recorded."""
        if self.seen == self.first:
            activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if self.on_gpu else [ProfilerActivity.CPU]
            self.profiler = profile(activities=activities)
            self.profiler.start()
        self.seen += 1

    def after_step(self) -> None:
        """Write the profile if this step was the last one to be recorded."""
        if self.profiler is None or self.seen < self.first + self.recorded:
            return
        self.profiler.stop()
        self._write(self.profiler)
        self.profiler = None

    def close(self) -> None:
        """The run ends: say so if nothing was recorded."""
        if self.seen < self.first + self.recorded:
            if self.profiler:
                self.profiler.stop()
            self.say(f"no profile: it takes {_WARM_STEPS + self.steps} optimizer steps, and the run ended before")

    def _write(self, profiler: profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / "trace.json.gz"))
        shares = step_shares(profiler.events(), self.on_gpu, self.accumulation * self.steps / self.recorded, self.steps)
        operations = profiler.key_averages().table(
            sort_by=f"self_{'device' if self.on_gpu else 'cpu'}_time_total", row_limit=_ROWS
        )
        what = f"{self.recorded} micro-batches and {self.steps} {'update' if self.steps == 1 else 'updates'}"
        text = f"{what}, of which a step has {self.accumulation}\n\n{shares.table()}\n\n{shares.sentence()}\n\n{operations}\n"
        (self.folder / "profile.txt").write_text(text)
        self.say(
            f"profile of {what}:\n{shares.table()}\n{shares.sentence()}\noperations in {self.folder}/profile.txt, trace beside it"
        )


def step_shares(events: Iterable, on_gpu: bool, scale: float, steps: int) -> Shares:
    """Return where the time of one optimizer step went.

    Args:
        events: of torch's profiler, whose times are in microseconds.
        on_gpu: tell by what ran on the GPU, not by what the process did.
        scale: micro-batches of the steps over those recorded.
        steps: updates among the events.
    """
    events = list(events)

    def in_process(part: str) -> float:
        return _length(_spans(events, DeviceType.CPU, lambda name: name == _PREFIX + part))

    starts, ends = zip(*_spans(events, DeviceType.CPU, lambda name: name.startswith(_PREFIX)))
    wall, data = max(ends) - min(starts), in_process("data wait")
    if not on_gpu:
        optimizer, communication = in_process("update"), in_process("agreement")
        computing, idle = max(0.0, wall - data - optimizer - communication), 0.0
    else:
        update = _spans(events, DeviceType.CUDA, lambda name: name == _PREFIX + "update")
        exchange = _spans(events, DeviceType.CUDA, lambda name: name.startswith(_COMMUNICATION))
        kernels = _spans(events, DeviceType.CUDA, lambda name: not name.startswith((_PREFIX, _COMMUNICATION)))
        optimizer = _length(update)
        computing = _length([*kernels, *update]) - optimizer
        communication = _length([*kernels, *update, *exchange]) - computing - optimizer
        # While the host waits for data the device still works off what it was given: only what is left of the wait costs time.
        unused = max(0.0, wall - computing - optimizer - communication)
        data = min(data, unused)
        idle = unused - data
    per_step = scale / steps / 1e6
    return Shares(
        computing * per_step, optimizer / steps / 1e6, communication / steps / 1e6, data * per_step, idle * per_step
    )


def _spans(events: list, device: DeviceType, wanted: Callable[[str], bool]) -> list[Span]:
    return [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == device and wanted(event.name)
    ]


def _length(spans: Iterable[Span]) -> float:
    """Microseconds that at least one of the spans covers."""
    total, reached = 0.0, float("-inf")
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, reached))
        reached = max(reached, last)
    return total
