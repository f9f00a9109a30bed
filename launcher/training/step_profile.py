"""Profiles a few micro-batches and the update after them: a trace, a table, and a sentence on what bounds the run.

The training loop marks the parts of a step with the ranges named here. On a GPU, time is attributed to a part by the
kernels that run; on a CPU, by these ranges.
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
_HOST_COPIES = ("Memcpy HtoD", "Memcpy DtoH")  # run beside kernels; where nothing else runs, the GPU waits for them
_WARM_STEPS = 2  # optimizer steps before the profile, in which kernels are chosen, compiled and loaded
_ROWS = 20  # operations in the table

Span = tuple[float, float]  # start and end, in microseconds


def marked(part: str) -> record_function:
    """Return the context that marks one part of a step: "data wait", "forward", "backward", "agreement" or "update"."""
    return record_function(_PREFIX + part)


@dataclass(frozen=True)
class StepTimes:
    """Seconds per optimizer step that each kind of work takes.

    Attributes:
        computing: forward and backward passes.
        optimizer: the update of weights and EMA.
        communication: only the part that is not hidden behind computing.
        data: waiting for the next micro-batch.
        idle: the device has no work although its data is ready.
    """

    computing: float
    optimizer: float
    communication: float
    data: float
    idle: float

    def table(self) -> str:
        """Return one line for each part, the largest first."""
        total = sum(vars(self).values())
        return "\n".join(
            f"{part:>14} {seconds * 1e3:10.1f} ms a step {seconds / total:7.1%}"
            for part, seconds in self._largest_first()
        )

    def sentence(self) -> str:
        """Return what bounds the run, and what would help."""
        (part, seconds), total = self._largest_first()[0], sum(vars(self).values())
        share = f"{seconds / total:.0%} of the time"
        if part != "data" and self.data > 0.1 * total:
            return f"{part} takes {share}, but {self.data / total:.0%} is spent waiting for data: {_HELP['data']}"
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
    "optimizer": "there is one update a step, so a larger batch.global needs fewer; offload makes each slower",
    "communication": "fewer processes, a lower ZeRO stage or a faster network would reduce it",
    "data": "more CPU cores and --workers, smaller images (`bigbatch shard --shortest-side`) or faster storage help",
    "idle": "a larger --micro-batch or engine.compile=true gives the GPU more to do at a time",
}


class StepProfile:
    """Records consecutive micro-batches that end with an update, and then writes what it found.

    Args:
        folder: where `trace.json.gz` (for Perfetto or chrome://tracing) and `profile.txt` are written.
        micro_batches: how many to record; a number above those of one step is rounded up to whole steps.
        cut: how the batch is cut, which says how many micro-batches a step has.
        device: of the training; it decides how time is attributed.
        say: prints a line for the user.
    """

    def __init__(self, folder: Path, micro_batches: int, cut: Cut, device: torch.device, say: Callable[[str], None]):
        self.folder, self.say, self.asked = folder, say, micro_batches
        self.on_gpu = device.type == "cuda"
        self.begin_anew(cut)

    def begin_anew(self, cut: Cut) -> None:
        """Start counting again, with steps of this cut."""
        self.accumulation = cut.accumulation
        self.steps = -(-self.asked // cut.accumulation)
        self.recorded = self.asked if self.steps == 1 else self.steps * cut.accumulation
        self.first = (_WARM_STEPS + self.steps) * cut.accumulation - self.recorded
        self.seen = 0
        self.profiler: profile | None = None

    def before_micro_batch(self) -> None:
        """Start recording if the next micro-batch is the first to be recorded."""
        if self.seen == self.first:
            activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if self.on_gpu else [ProfilerActivity.CPU]
            self.profiler = profile(activities=activities)
            self.profiler.start()
        self.seen += 1

    def after_step(self) -> None:
        """Write the profile if this step was the last to be recorded."""
        if self.profiler is None or self.seen < self.first + self.recorded:
            return
        self.profiler.stop()
        self._write(self.profiler)
        self.profiler = None

    def close(self) -> None:
        """Stop an unfinished recording at the end of the run, and tell the user that there is no profile."""
        if self.seen < self.first + self.recorded:
            if self.profiler:
                self.profiler.stop()
            self.say(f"no profile: it takes {_WARM_STEPS + self.steps} optimizer steps, and the run ended before")

    def _write(self, profiler: profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / "trace.json.gz"))
        times = step_times(profiler.events(), self.on_gpu, self.accumulation * self.steps / self.recorded, self.steps)
        operations = profiler.key_averages().table(
            sort_by=f"self_{'device' if self.on_gpu else 'cpu'}_time_total", row_limit=_ROWS
        )
        what = f"{self.recorded} micro-batches and {self.steps} {'update' if self.steps == 1 else 'updates'}"
        summary = f"{times.table()}\n{times.sentence()}"
        (self.folder / "profile.txt").write_text(
            f"{what}; a step has {self.accumulation} micro-batches\n\n{summary}\n\n{operations}\n"
        )
        self.say(
            f"profile of {what}:\n{summary}\nthe operations are in {self.folder}/profile.txt, the trace is beside it"
        )


def step_times(events: Iterable, on_gpu: bool, scale: float, steps: int) -> StepTimes:
    """Return the time that each part of one optimizer step took.

    Args:
        events: from torch's profiler, with times in microseconds.
        on_gpu: attribute time by the kernels on the GPU, not by the ranges of the process.
        scale: micro-batches of `steps` steps, divided by the number recorded.
        steps: the number of updates among the events.
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
        ran = [event for event in events if not event.is_user_annotation]
        updates = _spans(events, DeviceType.CUDA, lambda name: name == _PREFIX + "update")
        all_reduce = _spans(ran, DeviceType.CUDA, lambda name: name.startswith(_COMMUNICATION))
        kernels = _spans(ran, DeviceType.CUDA, lambda name: not name.startswith((_COMMUNICATION, *_HOST_COPIES)))
        # An annotation on the GPU reaches from its first kernel to its last, the gaps included: only kernels count.
        of_update = [span for span in kernels if any(first <= span[0] < last for first, last in updates)]
        optimizer = _length(of_update)
        computing = _length(kernels) - optimizer
        communication = _length([*kernels, *all_reduce]) - computing - optimizer
        # While the process waits for data, the GPU still works on what is queued: only the rest of the wait costs time.
        unused = max(0.0, wall - computing - optimizer - communication)
        data = min(data, unused)
        idle = unused - data
    per_step = scale / steps / 1e6
    return StepTimes(
        computing * per_step, optimizer / steps / 1e6, communication / steps / 1e6, data * per_step, idle * per_step
    )


def _spans(events: list, device: DeviceType, wanted: Callable[[str], bool]) -> list[Span]:
    return [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == device and wanted(event.name)
    ]


def _length(spans: Iterable[Span]) -> float:
    """Return the microseconds that at least one of the spans covers."""
    total, reached = 0.0, float("-inf")
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, reached))
        reached = max(reached, last)
    return total
