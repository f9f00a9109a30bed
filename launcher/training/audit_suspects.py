"""Which ranks computed wrongly, from what several ranks computed of the same parts of a step."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

_GRADIENT_ROUNDING = 10  # how much more than the loss the norm of a gradient may differ, as in a replay


@dataclass(frozen=True)
class ShareResult:
    """What a rank computed from a rank's share of the batch.

    Attributes:
        inputs: sums of the hashes of samples, labels, pixels, mixing and masks.
        loss: the sum of the losses of the images.
        gradient_norm: the root of the summed squares of the gradients of all micro-batches.
        gradient_bits: the digest of these gradients.
    """

    inputs: tuple[int, ...]
    loss: float
    gradient_norm: float
    gradient_bits: int

    def difference(self, other: "ShareResult", rounding: float) -> str | None:
        """Return the first of "inputs", "loss" and "gradient" that differs; None if none does.

        Args:
            rounding: relative difference of the loss that does not count; 0: every bit counts.
        """
        if self.inputs != other.inputs:
            return "inputs"
        if not _close(self.loss, other.loss, rounding):
            return "loss"
        if rounding:
            same = _close(self.gradient_norm, other.gradient_norm, _GRADIENT_ROUNDING * rounding)
        else:
            same = self.gradient_bits == other.gradient_bits
        return None if same else "gradient"


@dataclass(frozen=True)
class ComputedShare:
    """What one rank computed from the share of `owner`, which may be itself."""

    owner: int
    rank: int
    result: ShareResult


@dataclass(frozen=True)
class Suspects:
    """The ranks that computed wrongly.

    Attributes:
        wrong: what each of them computed wrongly, by rank.
        is_certain: False if as many results speak for one side as for the other; then all that took part are in
            `wrong`.
    """

    wrong: dict[int, str]
    is_certain: bool


def disagreement(shares: Iterable[ComputedShare], rounding: float) -> bool:
    """Return whether any two ranks computed different results from the same share."""
    return any(same[0].result.difference(other.result, rounding) for same in _by_owner(shares) for other in same[1:])


def find_suspects(shares: Iterable[ComputedShare], rounding: float) -> Suspects:
    """Return the ranks whose results differ from what more than half of the results of that share agree on."""
    wrong: dict[int, str] = {}
    unresolved: dict[int, str] = {}
    for same in _by_owner(shares):
        differences = [[one.result.difference(other.result, rounding) for other in same] for one in same]
        by_agreement = max(differences, key=lambda found: found.count(None))
        found = {one.rank: what for one, what in zip(same, by_agreement) if what}
        if 2 * by_agreement.count(None) > len(same):
            wrong |= found
        else:
            unresolved |= {one.rank: next(iter(found.values())) for one in same}
    return Suspects(wrong, True) if wrong else Suspects(unresolved, False)


def _by_owner(shares: Iterable[ComputedShare]) -> list[list[ComputedShare]]:
    found: dict[int, list[ComputedShare]] = {}
    for share in shares:
        found.setdefault(share.owner, []).append(share)
    return list(found.values())


def _close(one: float, other: float, rounding: float) -> bool:
    both_nan = math.isnan(one) and math.isnan(other)  # the loop has a sentence for a loss that is not finite
    return one == other or both_nan or math.isclose(one, other, rel_tol=rounding)
