"""The page about a learning-rate range test: its curve, the suggestion, and every step."""

from pathlib import Path

from data.atomic_io import write_atomically
from launcher.runs.line_chart import Chart, Line
from launcher.runs.lr_curve import LrCurve
from launcher.runs.page import page_environment
from recipes.errors import UserError
from recipes.schema import Recipe


def write_lr_page(recipe: Recipe, curve: LrCurve, setting: str, sentences: list[str], destination: Path) -> Path:
    """Write the page; return its path.

    Args:
        recipe: the one that was tested.
        curve: of at least one step.
        setting: how the batch was cut, and the engine.
        sentences: what the test found.
        destination: the HTML file.

    Raises:
        UserError: it cannot be written.
    """
    page = (
        page_environment()
        .get_template("lr_page.html")
        .render(recipe=recipe, curve=curve, setting=setting, sentences=sentences, chart=_chart(curve))
    )
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(destination, page.encode())
    except OSError as error:
        raise UserError(f"the page {destination} cannot be written ({error.strerror}): choose another --out") from None
    return destination


def _chart(curve: LrCurve) -> Chart:
    low = min(range(len(curve.smoothed)), key=curve.smoothed.__getitem__)
    highest, lowest = max(curve.smoothed[: low + 1]), curve.smoothed[low]
    # A diverging loss can be so large that the rest of the curve would look flat.
    top = highest + 0.5 * (highest - lowest) if highest > lowest else max(curve.losses)
    lines = [
        Line("loss of each step", curve.lrs, [min(loss, top) for loss in curve.losses], colour=5),
        Line("moving average", curve.lrs, [min(loss, top) for loss in curve.smoothed]),
    ]
    found = curve.suggestion()
    marks = [found.lr] if found and curve.lrs[0] <= found.lr <= curve.lrs[-1] else []
    return Chart(
        "Loss before the update of each step",
        lines,
        marks=marks,
        mark="suggested",
        over="learning rate",
        logarithmic=True,
        width=900,
        height=400,
    )
