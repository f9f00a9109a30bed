"""Line charts. The template ``diagram.html`` draws them as inline SVG, with the page's colours and fonts."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

_COLOURS = 6  # in the page's colour-blind-safe palette; further lines reuse them, dashed
_BINS = 300  # more points than this cannot be distinguished at the size of a chart
_DOTTED = 40  # up to this number of points, each one is marked
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 10, 38


@dataclass(frozen=True)
class Line:
    """One curve. A `noisy` one is drawn smoothed over its faint raw values."""

    name: str
    xs: list[float]
    ys: list[float]
    colour: int = 0
    dashed: bool = False
    noisy: bool = False

    @property
    def style(self) -> str:
        dash = self.colour // _COLOURS or int(self.dashed)
        return f"c{self.colour % _COLOURS} dash{min(dash, 3)}"


@dataclass
class Chart:
    """One diagram, over epochs if `over` names nothing else, in SVG units. One without `lines` cannot be drawn.

    Attributes:
        number: formats the labels of the vertical axis.
        to: the upper end of the vertical axis; None: what the lines need.
        marks: where vertical lines stand; `mark` says in the legend what they mean.
        logarithmic: whether the horizontal axis is. It then begins at the smallest value, and otherwise at zero.
        log_values: whether the vertical axis is logarithmic. All values are then positive, and `from_zero` and `to` are
            not used.
    """

    title: str
    lines: list[Line]
    number: Callable[[float], str] = "{:g}".format
    from_zero: bool = False
    to: float | None = None
    marks: list[float] = field(default_factory=list)
    mark: str = "restart"
    note: str = ""
    over: str = "epochs"
    logarithmic: bool = False
    log_values: bool = False
    width: int = 540
    height: int = 280

    def __post_init__(self):
        self.lines = [line for line in self.lines if line.xs]
        if not self.lines:
            return
        ys = [y for line in self.lines for y in line.ys]
        xs = [x for line in self.lines for x in line.xs]
        self._last_x = max(xs)
        if self.logarithmic:
            self._horizontal, numbered = _LogAxis(min(xs), max(xs)), _round_numbers(min(xs), max(xs))
        else:
            self._horizontal = _Axis(0.0, self._last_x or 1.0)
            numbered = _multiples(0, self._last_x, _nice(self._last_x, self.width / 70))
        self._vertical, values = self._log_values(ys) if self.log_values else self._values(ys)
        self.y_ticks = [(self._y(value), self.number(value)) for value in values]
        self.x_ticks = [(self._x(value), f"{value:g}".replace("e-0", "e-")) for value in numbered]
        self.left, self.right, self.top, self.bottom = _LEFT, self.width - _RIGHT, _TOP, self.height - _BOTTOM
        self.mark_positions = [self._x(epoch) for epoch in self.marks]

    def _values(self, ys: list[float]) -> tuple["_Axis", list[float]]:
        """Return the vertical axis for these values, and the values that are written on it."""
        span = (self.to or max(ys)) - (0 if self.from_zero else min(ys))
        step = _nice(span or 0.1 * abs(max(ys)), self.height / 50)  # a flat line is still shown near its value
        low = 0.0 if self.from_zero else step * math.floor(min(ys) / step + 1e-9)
        high = self.to or max(step * math.ceil(max(ys) / step - 1e-9), low + step)
        return _Axis(low, high), _multiples(low, high, step)

    @staticmethod
    def _log_values(ys: list[float]) -> tuple["_Axis", list[float]]:
        """Like `_values`, for a logarithmic axis, which begins and ends at a round number."""
        around = _round_numbers(min(ys) / 10, max(ys) * 10)
        low = max(value for value in around if value <= min(ys))
        high = min(value for value in around if value >= max(ys) and value > low)
        return _LogAxis(low, high), [value for value in around if low <= value <= high]

    @property
    def description(self) -> str:
        """The chart in words, for screen readers."""
        described = [
            f"{line.name} from {self.number(_short(line.ys[0]))} to {self.number(_short(line.ys[-1]))}"
            for line in self.lines
        ]
        return f"{self.title} over {self._last_x:g} {self.over}: {'; '.join(described)}"

    def path(self, line: Line) -> str:
        """Return the line as an SVG path, smoothed if it is noisy."""
        return self._path(line.xs, _smoothed(line.ys) if line.noisy else line.ys)

    def raw_path(self, line: Line) -> str:
        """Return all values of the line, without smoothing, as an SVG path."""
        return self._path(line.xs, line.ys)

    def dots(self, line: Line) -> list[tuple[float, float]]:
        """Return the positions at which values are marked; none if there are many."""
        few = not line.noisy and len(line.xs) <= _DOTTED
        return [(self._x(x), self._y(y)) for x, y in zip(line.xs, line.ys)] if few else []

    def _path(self, xs: list[float], ys: list[float]) -> str:
        return "M" + "L".join(f"{self._x(x)} {self._y(y)}" for x, y in _thinned(xs, ys))

    def _x(self, value: float) -> float:
        return round(_LEFT + self._horizontal.share(value) * (self.width - _LEFT - _RIGHT), 1)

    def _y(self, value: float) -> float:
        return round(_TOP + (1 - self._vertical.share(value)) * (self.height - _TOP - _BOTTOM), 1)


@dataclass(frozen=True)
class _Axis:
    """A linear axis, by the values at its ends."""

    low: float
    high: float

    def share(self, value: float) -> float:
        """Return where a value stands: 0 at the low end, 1 at the high end."""
        return (value - self.low) / (self.high - self.low)


class _LogAxis(_Axis):
    """A logarithmic axis."""

    def share(self, value: float) -> float:
        return math.log(value / self.low) / (math.log(self.high / self.low) or 1)


def _nice(span: float, parts: float) -> float:
    """Return the distance between ticks, 1, 2 or 5 times a power of ten, that gives at most about `parts` of them."""
    if span <= 0:
        return 1.0
    power = 10 ** math.floor(math.log10(span / parts))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= span / parts * 0.999)


def _multiples(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [_short(number * step) for number in range(first, last + 1)]


def _round_numbers(low: float, high: float) -> list[float]:
    """Return the powers of ten from `low` to `high`; if they are few, also 2 and 5 times each."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    times = (1, 2, 5) if high / low < 1000 else (1,)
    return [value for power in powers for time in times if low <= (value := time * 10.0**power) <= high]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _smoothed(ys: list[float]) -> list[float]:
    """Return the moving average over about a twenty-fifth of the curve."""
    sums, half, count = list(accumulate(ys, initial=0.0)), len(ys) // 50, len(ys)
    spans = [(max(0, at - half), min(count, at + half + 1)) for at in range(count)]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in spans]


def _thinned(xs: list[float], ys: list[float]) -> list[tuple[float, float]]:
    """Return the lowest and the highest point of every bin, which look like all points, spikes included."""
    size = math.ceil(len(xs) / _BINS)
    kept = set()
    for start in range(0, len(xs), size):
        bin_ = range(start, min(start + size, len(xs)))
        kept |= {min(bin_, key=ys.__getitem__), max(bin_, key=ys.__getitem__)}
    return [(xs[at], ys[at]) for at in sorted(kept)]
