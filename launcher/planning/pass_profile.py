"""The memory and the work of a forward and backward pass, for any number of images, from two traces."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from launcher.planning.speeds import Rates

if TYPE_CHECKING:
    from launcher.planning.step_trace import StepTrace


class Affine(NamedTuple):
    """A quantity that is affine in the number of images."""

    fixed: float
    per_image: float

    def at(self, images: int) -> float:
        """Return the quantity for so many images."""
        return self.fixed + self.per_image * images


class RepeatedOperation(NamedTuple):
    """Operations of equal cost.

    Attributes:
        times: how many of them a pass starts.
        flops: multiplications and additions of each.
        bytes: that each reads and writes.
        fusible: see `operation_cost.OperationCost`.
    """

    times: int
    flops: Affine
    bytes: Affine
    fusible: bool


@dataclass(frozen=True)
class PassProfile:
    """A forward and backward pass, without parameters and accumulated gradients.

    At each moment of the pass, memory is affine in the number of images: the constant part is parameters at lower
    precision and a layer's gradient before it is accumulated. The peak is the largest of these lines.

    Attributes:
        memory: bytes at the moments that are the peak for some number of images.
        operations: what torch starts; operations of equal cost are listed once.
        repeats: images after which the whole list is started again; None: one list serves any number of images.
    """

    memory: list[Affine]
    operations: list[RepeatedOperation]
    repeats: int | None = None

    def bytes_for(self, images: int) -> int:
        """Return the peak memory in bytes of a pass over so many images."""
        return round(max(line.at(images) for line in self.memory))

    def seconds(self, rates: Rates, images: int, compiled: bool, seconds_per_operation: float = 0.0) -> float:
        """Return the seconds of the pass over so many images, as a roofline over the operations.

        Args:
            rates: of the device.
            images: of the micro-batch.
            compiled: whether everything that a compiler can fuse into its neighbours is fused, which is the best case.
            seconds_per_operation: the least time in which an operation is started.
        """
        size = self.repeats or images
        operations = [operation for operation in self.operations if not (compiled and operation.fusible)]
        busy = sum(
            operation.times
            * max(operation.flops.at(size) / rates.flops_per_second, operation.bytes.at(size) / rates.bytes_per_second)
            for operation in operations
        )
        started = sum(operation.times for operation in operations) * seconds_per_operation
        return images / size * max(busy, started)


def pass_profile(one: "StepTrace", two: "StepTrace") -> PassProfile:
    """Return the profile that follows from a trace and from one with twice as many images."""
    images = one.micro_batch
    if len(one.history) == len(two.history):
        moments = list(zip(one.history, two.history))
    else:
        # The traces have other operations, e.g. one for each of BatchNorm's statistics batches.
        moments = [(one.peak, two.peak)]
    memory = upper_envelope([_line(*moment, images) for moment in moments])
    if len(one.operations) != len(two.operations):
        constant = Counter(one.operations)
        operations = [
            RepeatedOperation(count, Affine(cost.flops, 0.0), Affine(cost.bytes, 0.0), cost.fusible)
            for cost, count in constant.items()
        ]
        return PassProfile(memory, operations, repeats=images)
    pairs = Counter(zip(one.operations, two.operations))
    operations = [
        RepeatedOperation(
            count,
            _line(first.flops, second.flops, images),
            _line(first.bytes, second.bytes, images),
            first.fusible,
        )
        for (first, second), count in pairs.items()
    ]
    return PassProfile(memory, operations)


def _line(one: float, two: float, images: int) -> Affine:
    """Return the line through a value for `images` and one for twice as many."""
    return Affine(2.0 * one - two, (two - one) / images)


def upper_envelope(lines: Sequence[Affine]) -> list[Affine]:
    """Return the lines that are above all others for some number of images from 1 on."""
    chosen = [max(lines, key=lambda line: (line.at(1), line.per_image))]
    while True:
        last = chosen[-1]
        steeper = [line for line in lines if line.per_image > last.per_image]
        if not steeper:
            return chosen
        # The next line of the envelope is the steeper one that crosses this one first.
        chosen.append(
            min(
                steeper,
                key=lambda line: ((last.fixed - line.fixed) / (line.per_image - last.per_image), -line.per_image),
            )
        )
