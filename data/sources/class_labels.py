"""Labels as text or numbers, from tables and from columns of data sets, turned into numbered classes."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.printable_text import composed, one_line
from data.sources.base import require_classes
from recipes.errors import UserError

OTHER_COLUMN = "name another column with --label-column"
_LONGEST_NUMBER = 100  # digits; Python refuses to read numbers of several thousand
_NOT_A_NUMBER = {"nan", "<na>"}  # what pandas writes for a missing label


def cleaned_labels(labels: Sequence[str], column: str, advice: str) -> list[str]:
    """Return labels without the ".0" that data frames add to whole numbers, and empty where pandas had none.

    A label in either of Unicode's two forms is the same label: it is composed (NFC).

    Args:
        labels: as text.
        column: the name of their column in a message.
        advice: what to do if they are no classes.

    Raises:
        UserError: a label is a list or an object, which is no class.
    """
    found = ["" if label.lower() in _NOT_A_NUMBER else composed(label) for label in labels]
    if several := next((label for label in found if label[:1] + label[-1:] in ("[]", "{}")), None):
        raise UserError(
            f"{column} holds lists or objects, e.g. {one_line(several[:60])}, and not one class per image: {advice}"
        )
    if all(not label or label.removesuffix(".0").isdecimal() for label in found):
        return [label.removesuffix(".0") for label in found]
    return found


def merged_forms(labels: Sequence[str]) -> list[str]:
    """Return a sentence about labels that were in both of Unicode's forms, or nothing."""
    forms = Counter(map(composed, set(labels)))
    merged = ", ".join(sorted(name for name, found in forms.items() if found > 1))
    return [f"labels of one name in two Unicode forms were merged into one class: {merged}"] if merged else []


def numbered(labels: Sequence[str], place: str, advice: str) -> tuple[NDArray[np.int32], list[str]]:
    """Return the class number of each label, and the names of the classes: sorted, numbers by their value.

    Raises:
        UserError: there are fewer than two classes, or nearly as many as images.
    """
    found = set(labels)
    if len(found) > max(2, len(labels) // 2):
        raise UserError(f"the labels of {place} are different for nearly every image, e.g. {min(found)!r}: {advice}")
    classes = sorted(found)
    if all(label.isdecimal() and len(label) < _LONGEST_NUMBER for label in found):
        classes.sort(key=int)  # a stable sort: the order of "1" and "01" must not change from one process to the next
    require_classes(classes, place)
    number = {label: i for i, label in enumerate(classes)}
    return np.array([number[label] for label in labels], np.int32), classes
