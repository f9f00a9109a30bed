"""The interval in which an accuracy lies, given how many images it was measured on."""

import math

Z_95 = 1.959963984540054  # the normal quantile of a 95 % interval


def wilson_interval(share: float, images: int) -> tuple[float, float]:
    """Return the bounds of the 95 % Wilson score interval of a share of correct images.

    Unlike the share plus or minus its standard error, it is sensible for few images and for shares of 0 and 1 (Wilson
    1927; Brown, Cai and DasGupta 2001).

    Args:
        share: of correct images, 0 to 1.
        images: on which it was measured, at least 1.
    """
    square = Z_95**2 / images
    centre = (share + square / 2) / (1 + square)
    half = Z_95 / (1 + square) * math.sqrt(share * (1 - share) / images + square / (4 * images))
    return max(0.0, centre - half), min(1.0, centre + half)


def with_interval(share: float, images: int) -> str:
    """Return an accuracy in percent with its 95 % interval, e.g. ``97.21% (95.0–98.6)``."""
    low, high = wilson_interval(share, images)
    digits = 1 if high - low > 0.005 else 2  # two digits of an interval that is narrower than half a percent
    return f"{share:.2%} ({100 * low:.{digits}f}–{100 * high:.{digits}f})"
