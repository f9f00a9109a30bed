"""Which members of WebDataset samples gave the labels, which were left out, and where two of them disagree."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from data.reading.tar_samples import LABEL_ENDINGS, TarSample
from data.sources.webdataset_shards import label_member, labels_in


class LabelMembers:
    """Counts for the samples of one shard.

    Attributes:
        used: number of samples by the ending of the member that gave the label.
        unused: number of other label members by ending.
        pairs: by the endings of the used member and another one, ``cls json``, and by their two labels: the number of
            samples that have them, and the name of the first.
    """

    def __init__(self) -> None:
        self.used: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self.pairs: dict[str, dict[str, dict[str, list[Any]]]] = {}

    def add(self, sample: TarSample, name: str) -> None:
        """Count the label members of a sample that has a label."""
        used, label = label_member(sample)
        assert used is not None and label is not None
        self.used[used] += 1
        for other in LABEL_ENDINGS:
            if other in sample.labels and other != used:
                self.unused[other] += 1
                if (second := _comparable(labels_in(sample, other) or [], label, other)) is not None:
                    of_label = self.pairs.setdefault(f"{used} {other}", {}).setdefault(label, {})
                    of_label.setdefault(second, [0, name])[0] += 1

    def record(self) -> dict[str, Any]:
        """Return the counts as plain values, for `label_notes`."""
        return {"labels_from": self.used, "label_pairs": self.pairs}


def _comparable(labels: list[str], label: str, ending: str) -> str | None:
    """Return which of a member's labels is to be compared with the used one; None if no one is.

    Text is mostly a caption, so only a number in it is a label. A number beside a name is another way to write a class,
    and serves only if there is nothing of the same kind.
    """
    labels = [one for one in labels if one and (ending != "txt" or (one.isdecimal() and label.isdecimal()))]
    alike = [one for one in labels if one.isdecimal() == label.isdecimal()] or labels
    return label if label in alike else next(iter(alike), None)


def label_notes(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return sentences that name the members that gave the labels, and count the members that contradict them.

    Args:
        records: of all shards, see `LabelMembers.record`.
    """
    used: Counter[str] = Counter()
    for record in records:
        used.update(record.get("labels_from", {}))
    counts = [f".{ending}" + f" ({count:,} images)" * (len(used) > 1) for ending, count in used.most_common()]
    found = [f"labels from {', '.join(counts)}"] if counts else []
    for endings in sorted({endings for record in records for endings in record.get("label_pairs", {})}):
        pairs: dict[str, dict[str, list[Any]]] = defaultdict(dict)
        for record in records:
            for label, others in record.get("label_pairs", {}).get(endings, {}).items():
                for other, (count, name) in others.items():
                    pairs[label].setdefault(other, [0, name])[0] += count
        found += _contradictions(endings, pairs)
    return found


def _contradictions(endings: str, pairs: dict[str, dict[str, list[Any]]]) -> list[str]:
    """Return a sentence that counts the samples whose two labels contradict each other; nothing without any."""
    first, second = endings.split()
    wrong = [
        (count, name, label, other)
        for label, others in pairs.items()
        for other, (count, name) in others.items()
        if other != _meant(label, others)
    ]
    if not wrong:
        return []
    _, name, label, other = wrong[0]
    return [
        f"in {sum(count for count, *_ in wrong):,} samples .{second} contradicts .{first}, which is used, e.g. {name}: "
        f".{first} says {label} and .{second} says {other}"
    ]


def _meant(label: str, others: dict[str, list[Any]]) -> str:
    """Return what the other member has to say for a class: the same number, or the same name or its usual other one."""
    if label in others:
        return label
    if label.isdecimal() and (numbers := [other for other in others if other.isdecimal()]):
        return next((other for other in numbers if int(other) == int(label)), label)
    return max(others, key=lambda other: others[other][0])
