"""How often to save when hardware fails: Young's and Daly's interval, and the share of the time that is then useful.

Failures come at random, on average once per `mtbf` seconds of the whole job. A save stops training for `stall`
seconds. A failure costs the steps since the last save, and `restart` seconds until training runs again.

Source: J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22 (2006).
"""

import math


def best_interval(stall: float, mtbf: float) -> float:
    """Return the seconds between two saves that lose the least time.

    This is Daly's estimate; for a small `stall` it equals Young's, ``sqrt(2 * stall * mtbf)``.
    """
    if stall >= 2 * mtbf:
        return mtbf
    ratio = stall / (2 * mtbf)
    return math.sqrt(2 * stall * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall


def goodput(interval: float, stall: float, mtbf: float, restart: float) -> float:
    """Return the long-run share of the time, 0 to 1, that goes into steps which are kept.

    The expected time to train for `interval` seconds and save, with all failures and repetitions, is
    ``mtbf * exp(restart / mtbf) * (exp((interval + stall) / mtbf) - 1)`` (Daly's equation 13).
    """
    exponent = (interval + stall) / mtbf
    if exponent > 700:  # math.expm1 overflows near 710; the goodput is zero long before
        return 0.0
    return interval / (mtbf * math.exp(restart / mtbf) * math.expm1(exponent))
