"""`bigbatch report`: writes one self-contained page about runs, with recipes, curves, mistakes and a comparison."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import yaml
from markupsafe import Markup
from pydantic import BaseModel

from data.atomic_io import write_atomically
from launcher.runs.disagreements import disagreements
from launcher.runs.history import History
from launcher.runs.intervals import wilson_interval
from launcher.runs.line_chart import Chart, Line
from launcher.runs.output_file import PAGE_ENDINGS, check_output
from launcher.runs.page import page_environment
from launcher.runs.recipe_differences import flat_recipe, recipe_differences
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError
from recipes.load import load
from recipes.local_paths import local_path
from recipes.schema import Recipe

_REFERENCE = "convnext_tiny_in1k"
_CLASSES_SHOWN = 20
_MATRIX_CLASSES = 20  # more do not fit the page


def write_report(runs: str | Path | Sequence[str | Path], destination: str | Path) -> Path:
    """Write the page about these run directories; return its path.

    Raises:
        UserError: one of them is not a run directory or has no finished step, or the page cannot be written, or would
            replace something else (`launcher.runs.output_file`).
    """
    if not runs:
        raise UserError("name at least one run directory, e.g. `bigbatch report runs/demo`")
    paths = [local_path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    destination = local_path(destination)
    check_output(destination, PAGE_ENDINGS)
    histories = [History(path) for path in paths]
    page = (
        _environment()
        .get_template("report.html")
        .render(
            histories=histories,
            labels=_labels(histories, paths),
            comparison=_comparison_charts(histories, _labels(histories, paths)) if len(paths) > 1 else [],
            disagreements=disagreements([RunDirectory(path) for path in paths]) if len(paths) > 1 else [],
            differences=recipe_differences([history.recipe for history in histories]),
            classes_shown=_CLASSES_SHOWN,
            matrix_classes=_MATRIX_CLASSES,
        )
    )
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(destination, page.encode())
    except OSError as error:
        raise UserError(
            f"the report {destination} cannot be written ({error.strerror}): choose another --out"
        ) from None
    return destination


@functools.cache
def _environment() -> jinja2.Environment:
    environment = page_environment()
    environment.filters |= {
        "percent": _percent,
        "count": _formatter("{:,}"),
        "loss": _formatter("{:.4f}"),
        "speed": _formatter("{:,.0f}"),
        "interval": _interval,
        "points": lambda share: f"{100 * share:+.2f}",
        "duration": _duration,
        "millions": _millions,
        "gflops": _gflops,
        "moment": lambda unix: f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%d %H:%M} UTC",
        "value": _value,
        "sentence": lambda text: f"{text[0].upper()}{text[1:].rstrip('.')}.",
        "breakable": lambda name: Markup("_<wbr>").join(name.split("_")),
    }
    environment.globals |= {"charts": _charts, "sections": _sections, "yaml": _yaml}
    return environment


def _labels(histories: list[History], runs: list[Path]) -> list[str]:
    """Return the folder name of each run, or the paths as given if two folders have the same name."""
    folders = [history.folder for history in histories]
    return folders if len(set(folders)) == len(folders) else [str(run) for run in runs]


def _charts(history: History) -> tuple[list[Chart], list[Chart]]:
    """Return the large and the small charts of one run."""

    def line(label: str, kind: str, name: str, **style) -> Line:
        return Line(label, *history.curve(kind, name), **style)

    marks = [history.epoch(start) for start in history.restarts]
    mixed = history.recipe.mix.mixup or history.recipe.mix.cutmix or history.recipe.loss.smoothing
    loss = [line("training", "step", "loss", noisy=True), line("validation", "evaluation", "loss", colour=1)]
    note = (
        "Training labels are mixed or smoothed and validation labels are not, so the two are not comparable."
        if mixed
        else ""
    )
    # Versions before 0.2.0 recorded fewer quantities; a chart without any line is left out.
    large = [Chart("Loss", loss, marks=marks, note=note if history.evaluations else "")]
    if history.evaluations:
        accuracy = [
            line("top-1, raw weights", "evaluation", "top1"),
            line("top-5, raw weights", "evaluation", "top5", dashed=True),
            line("top-1, EMA", "evaluation", "ema_top1", colour=1),
            line("top-5, EMA", "evaluation", "ema_top5", colour=1, dashed=True),
        ]
        large.append(Chart("Validation accuracy", accuracy, number=_share, marks=marks))
    speed = line("images per second", "step", "images_per_second", colour=2, noisy=True)
    wait = line("share of time", "step", "data_wait", colour=3, noisy=True)
    noise = line("noise scale", "step", "noise_scale", colour=5)
    norm = line("gradient norm", "step", "gradient_norm", colour=4, noisy=True)
    small = [
        Chart("Learning rate", [line("learning rate", "step", "lr")], from_zero=True, marks=marks),
        Chart("Norm of the gradient, before clipping", [norm], from_zero=True, marks=marks),
        # Early in a run it may be a hundred times what it is later.
        Chart("Gradient noise scale in images", [noise], "{:,g}".format, log_values=True, marks=marks),
        Chart("Images per second", [speed], number="{:,g}".format, from_zero=True, marks=marks),
        Chart("Time spent waiting for data", [wait], number=_share, from_zero=True, to=1.0, marks=marks),
    ]
    if trade_off := _batch_size_chart(history):
        small.append(trade_off)
    return _drawn(large), [replace(chart, width=350, height=210) for chart in _drawn(small)]


def _drawn(charts: list[Chart]) -> list[Chart]:
    return [chart for chart in charts if chart.lines]


def _batch_size_chart(history: History) -> Chart | None:
    """Return steps and images to the same loss for batch sizes around the noise scale; None if it is unknown.

    Both follow the law of McCandlish et al. (`launcher.planning.batch_sizes`). The mark is the run's own batch.
    """
    measured = history.values("step", "noise_scale")
    if not measured:
        return None
    noise, own = measured[-1], float(history.recipe.batch.global_)
    widest = min(max(8.0, own / noise, noise / own), 16.0)  # further out, steps or images would hide the rest
    ratios = [widest ** (power / 25) for power in range(-25, 26)]  # of batch and noise scale
    batches = [noise * ratio for ratio in ratios]
    lines = [
        Line("steps, as a multiple of the fewest", batches, [1 + 1 / ratio for ratio in ratios], colour=5),
        Line("images, as a multiple of the fewest", batches, [1 + ratio for ratio in ratios], colour=1),
    ]
    marks = [own] if batches[0] <= own <= batches[-1] else []
    note = (
        f"A prediction from the noise scale at the end of the run, {noise:,.0f} images, where both lines cross. "
        f"It can be wrong by a factor of a few. This run's batch is {own:,.0f}."
    )
    title = "Steps and images to the same loss"
    return Chart(
        title, lines, from_zero=True, marks=marks, mark="this run", note=note, over="batch size", logarithmic=True
    )


def _comparison_charts(histories: list[History], labels: list[str]) -> list[Chart]:
    """Return the charts that compare runs, with one line per run in each."""

    def lines(kind: str, name: str, noisy: bool = False) -> list[Line]:
        return [
            Line(label, *history.curve(kind, name), colour=number, noisy=noisy)
            for number, (label, history) in enumerate(zip(labels, histories))
        ]

    charts = [Chart("Training loss", lines("step", "loss", noisy=True))]
    if any(history.evaluations for history in histories):
        charts.append(Chart("Top-1 accuracy, raw weights", lines("evaluation", "top1"), number=_share))
    if any(history.has_ema for history in histories):
        charts.append(Chart("Top-1 accuracy, EMA", lines("evaluation", "ema_top1"), number=_share))
    charts.append(Chart("Learning rate", lines("step", "lr"), from_zero=True))
    speed = lines("step", "images_per_second", noisy=True)
    return _drawn([*charts, Chart("Images per second", speed, number="{:,g}".format, from_zero=True)])


def _sections(recipe: Recipe) -> list[tuple[str, list[dict]]]:
    """Return the recipe by section; a row holds a key, its value, its meaning and the value of the reference recipe."""
    reference = flat_recipe(load(_REFERENCE))
    found: dict[str, list[dict]] = {}
    for key, value in flat_recipe(recipe).items():
        section, _, name = key.rpartition(".")
        # The reference leaves some keys of the engine to the machine; what was settled there is no difference.
        differs = value != reference[key] and reference[key] != "auto" and key != "data.path"
        row = {
            "name": name,
            "value": value,
            "differs": differs,
            "reference": reference[key],
            "meaning": _meaning(section, name),
        }
        found.setdefault(section or "run", []).append(row)
    return list(found.items())


def _meaning(section: str, name: str) -> str:
    settings = Recipe.model_fields[section].annotation if section else Recipe
    fields = settings.model_fields if isinstance(settings, type) and issubclass(settings, BaseModel) else {}
    return next((field.description or "" for key, field in fields.items() if name in (key, field.alias)), "")


def _yaml(recipe: Recipe) -> str:
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True, width=100)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"


def _formatter(form: str) -> Callable[[float | None], str]:
    return lambda value: "–" if value is None else form.format(value)


def _interval(share: float | None, images: int | None) -> str:
    if share is None or images is None:
        return "–"
    low, high = wilson_interval(share, max(images, 1))
    return f"{100 * low:.1f}–{high:.1%}"


def _share(share: float) -> str:
    return f"{100 * share:g}%"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"


def _gflops(multiply_adds: int | None) -> str:
    return "–" if multiply_adds is None else f"{multiply_adds / 1e9:.3g}"


def _duration(seconds: float) -> str:
    days, hours, minutes = int(seconds // 86400), int(seconds // 3600 % 24), int(seconds // 60 % 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {int(seconds % 60)} s" if minutes else f"{seconds:.0f} s"


def _value(value) -> str:
    """Format a recipe's value: 1e-6 rather than 1e-06, 1.33333 rather than 16 digits."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "none"
    if isinstance(value, float):
        return f"{value:.6g}".replace("e-0", "e-")
    return f"{value:,}" if isinstance(value, int) else str(value)
