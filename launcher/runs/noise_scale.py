"""The gradient noise scale of McCandlish et al., 2018 (arXiv 1812.06162), from the gradients of a batch and its parts.

The squared norm of a gradient over ``n`` images has the mean ``|G|² + tr Σ / n``. G is the true gradient and Σ the
covariance of one image's gradient. So the squared norms for two sizes give unbiased estimates of both terms (appendix
A.1 of the paper). Single estimates are noisy and can be negative. They are averaged apart over steps, and the noise
scale is the ratio of the averages, ``tr Σ / |G|²``, in images.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

# How a step's record names the two estimates, and the noise scale of the steps up to it.
SIGNAL, NOISE, NOISE_SCALE = "gradient_signal", "gradient_noise", "noise_scale"
LATEST = 100  # steps that a step's noise scale is averaged over
_FEWEST = 10  # steps without which there is no noise scale


@dataclass(frozen=True)
class NoiseEstimate:
    """What the gradients of one step say.

    Attributes:
        signal: an unbiased estimate of the squared norm of the true gradient.
        noise: an unbiased estimate of the trace of the covariance of one image's gradient.
    """

    signal: float
    noise: float


def estimate_noise(part_square: float, part: float, batch_square: float, batch: int) -> NoiseEstimate:
    """Return the estimates from the squared norms of mean gradients over `part` and over `batch` images.

    For parts of several sizes, `part_square` is the mean weighted by their images, and `part` the mean size.
    """
    signal = (batch * batch_square - part * part_square) / (batch - part)
    noise = (part_square - batch_square) / (1 / part - 1 / batch)
    return NoiseEstimate(signal, noise)


def noise_scale(estimates: Iterable[NoiseEstimate]) -> float | None:
    """Return the noise scale in images; None for fewer than ten steps or where noise hides the true gradient."""
    found = list(estimates)
    signal, noise = sum(one.signal for one in found), sum(one.noise for one in found)
    return noise / signal if len(found) >= _FEWEST and signal > 0 and noise > 0 else None


def recorded_estimates(events: Iterable[dict]) -> list[NoiseEstimate]:
    """Return the estimates in those events of a run that have them; runs of 0.1.0 have none."""
    found = [(event.get(SIGNAL), event.get(NOISE)) for event in events]
    return [NoiseEstimate(signal, noise) for signal, noise in found if signal is not None and noise is not None]


class RecentNoise:
    """The noise scale of the latest hundred steps."""

    def __init__(self, events: Iterable[dict]):
        """Begin with the recorded events of earlier starts, so that a resumed run records what it would have."""
        self._estimates = deque(recorded_estimates(events), maxlen=LATEST)

    def add(self, estimate: NoiseEstimate) -> dict[str, float | None]:
        """Add a step; return what its record says."""
        self._estimates.append(estimate)
        return {SIGNAL: estimate.signal, NOISE: estimate.noise, NOISE_SCALE: noise_scale(self._estimates)}
