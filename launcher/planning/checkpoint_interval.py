"""How often to save when hardware fail: Young's and Daly's interval, and the share of the time that is then useful.

Failures come at random, on average once per `mtbf` seconds of the whole job. Saving takes `stall` seconds of training; a
failure costs what was not saved and `restart` seconds until training goes on.

Source: J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22 (2006).
"""

import math


def best_interval(stall: float, mtbf: float) -> float:
    """Seconds of training between two saves that lose the least: Daly's estimate, which is Young's for small `stall`."""
    if stall >= 2 * mtbf:
        return mtbf
    ratio = stall / (2 * mtbf)
    return math.sqrt(2 * stall * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall


def goodput(interval: float, stall: float, mtbf: float, restart: float) -> float:
    """The share of the time that goes into steps which count, 0..1, in the long run.

    The expected time until a stretch of `interval` and its save is through, failures and repetitions included, is
    ``mtbf * exp(restart / mtbf) * (exp((interval + stall) / mtbf) - 1)`` (Daly's equation 13).
    """
    exponent = (interval + stall) / mtbf
    if exponent > 700:
        return 0.0
    return interval / (mtbf * math.exp(restart / mtbf) * math.expm1(exponent))
