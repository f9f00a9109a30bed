"""How far plans were off beside published figures, in the sentences that `bigbatch plan` prints.

`python -m tests.benchmarks.plan_accuracy` prints the comparison, and docs/measurements/plan-accuracy.md has its
tables. A test compares the numbers here with them.
"""

from typing import NamedTuple


class Error(NamedTuple):
    """Errors of predicted speeds: 0.5 means that a prediction is 1.5 times the published speed, or the reverse."""

    median: float
    largest: float


SAME_CARD = Error(0.16, 1.72)  # models of the card of the fit that the two constants were not fitted on
OTHER_CARDS = Error(0.21, 0.50)
MEMORY_MODELS, MEMORY_AGREES = 33, 28  # models with a published micro-batch, and those whose memory agrees with it

TIMES = (
    f"Beside published speeds, such times were off by {SAME_CARD.median:.0%} in the median and {SAME_CARD.largest:.0%} "
    "at most for other models of the card that the two constants were fitted on, and by "
    f"{OTHER_CARDS.median:.0%} and {OTHER_CARDS.largest:.0%} on two other cards (docs/measurements/plan-accuracy.md)."
)
MEMORY = (
    "Memory is traced and counted. The allowance of 6% and 1 GiB is an assumption that no GPU has confirmed. It was "
    f"checked against published micro-batches of a card of 24 GiB: for {MEMORY_AGREES} of {MEMORY_MODELS} models the "
    "plan agrees on which of them fit (docs/measurements/plan-accuracy.md)."
)
