"""Which values the keys of an event in ``metrics.jsonl`` may have, so that no reader meets a value of another type.

Every event has `event`, `time` and `step`. All other keys are optional, because earlier versions wrote fewer, and
readers ignore keys that are not listed here.
"""

from collections.abc import Callable
from typing import Any

LATEST_TIME = 250_000_000_000  # Unix seconds, in the year 9892: `datetime` ends with the year 9999
_LARGEST = 1e100  # larger numbers overflow in what is computed from them
_SMALLEST = 1e-100
_REQUIRED = {"event", "time", "step"}


def is_event(value: Any) -> bool:
    """Return whether a value that was parsed from a line is an event whose known keys have values of their types."""
    return (
        isinstance(value, dict)
        and value.keys() >= _REQUIRED
        and all(_KEYS[key](content) for key, content in value.items() if key in _KEYS)
    )


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 2**53  # a bool is an `int` too


def _number(low: float = -_LARGEST, high: float = _LARGEST, or_none: bool = False) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return low <= value <= high if type(value) in (int, float) else value is None and or_none

    return check


def _measured(value: Any) -> bool:
    # What a run measures may be NaN or infinite, and the other values of the event are good.
    return type(value) is float or _count(value)


def _measured_or_none(value: Any) -> bool:
    return value is None or _measured(value)


_KEYS: dict[str, Callable[[Any], bool]] = {
    "event": _text,
    "time": _number(0, LATEST_TIME),
    "step": _count,
    "epoch": _number(0),
    # start and cut
    "cut": _text,
    "engine": _text,
    "device": _text,
    "precision": _text,
    "versions": _texts,
    "code": _text,
    "own_code": _text,
    # step
    "loss": _measured,  # of an evaluation too
    "lr": _number(),
    "weight_decay": _number(),
    "ema_decay": _number(or_none=True),  # None without EMA weights
    "inputs": _text,
    "gradient_norm": _measured_or_none,  # None after an overflow in fp16
    "gradient_signal": _measured_or_none,
    "gradient_noise": _measured_or_none,
    "noise_scale": _number(_SMALLEST, or_none=True),  # None as long as it is unknown
    "images_per_second": _number(0),
    "data_wait": _number(0),
    "replaced": _count,
    # evaluation
    "images": _count,
    "top1": _number(0, 1, or_none=True),
    "top5": _number(0, 1, or_none=True),  # None for fewer than six classes
    "ema_top1": _number(0, 1, or_none=True),  # None without EMA weights
    "ema_top5": _number(0, 1, or_none=True),
    # checkpoint, finish and stop
    "stall_seconds": _number(),
    "seconds": _number(),
}
