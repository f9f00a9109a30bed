"""How each step of a run was computed: the cut, the machine and the code of the start that it belongs to."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

# Facts of a setting that keep two trainings from being equal bit for bit if they differ.
_ARITHMETIC = ("cut", "engine", "device", "precision")


@dataclass(frozen=True)
class StepSetting:
    """How a step was computed. Runs of version 0.1.0 recorded no versions and no code at their starts.

    Attributes:
        cut: of the batch, as `launcher.cut.Cut` is written.
        engine: e.g. "DDP" or "ZeRO-2".
        device: "CPU" or the name of the GPU.
        precision: of the forward pass.
        versions: of the libraries, by name.
        code: the digest of bigbatch's own code.
        own_code: the digest of the user's code; empty if the recipe names none.
    """

    cut: str
    engine: str
    device: str
    precision: str
    versions: dict[str, str] = field(default_factory=dict)
    code: str = ""
    own_code: str = ""

    def rounds_as(self, other: "StepSetting") -> bool:
        """Return whether a step computed in both ways is expected to be equal bit for bit."""
        return all(getattr(self, name) == getattr(other, name) for name in _ARITHMETIC)

    def differences(self, other: "StepSetting") -> list[tuple[str, Any, Any]]:
        """Return name and both values of each fact that differs, each library by itself."""
        ours, theirs = self._facts(), other._facts()
        return [(name, ours[name], theirs[name]) for name in ours if name in theirs and ours[name] != theirs[name]]

    def _facts(self) -> dict[str, str]:
        facts = {name: getattr(self, name) for name in _ARITHMETIC} | self.versions
        digests = {"code": self.code, "own code": self.own_code}
        return facts | {name: digest for name, digest in digests.items() if digest}


def settings_of(events: Iterable[dict]) -> dict[int, StepSetting]:
    """Return the setting of every recorded step by its number, from 1. A run may change it at every start."""
    found: dict[int, StepSetting] = {}
    facts: dict[str, Any] = {}
    for event in events:
        if event["event"] == "start":
            facts = {name: event.get(name, "") for name in _ARITHMETIC}
            facts |= {"versions": event.get("versions", {}), "code": event.get("code", "")}
            facts["own_code"] = event.get("own_code", "")
        elif event["event"] == "cut" and facts:  # a smaller micro-batch after memory ran out
            facts = {**facts, "cut": event.get("cut", "")}
        elif event["event"] == "step" and facts:
            found[event["step"]] = StepSetting(**facts)
    return found
