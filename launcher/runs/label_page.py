"""Images whose labels are likely wrong: a page with pictures, and a table to act on.

A label is suspected where the model is as sure of another class as it is on average where it predicts that class
correctly. This is the criterion of confident learning (Northcutt, Jiang and Chuang 2021) with a stricter threshold:
theirs averages over all images with the label, this one over those that are predicted correctly.
"""

import csv
import io
from pathlib import Path

import numpy as np

from data.atomic_io import write_atomically
from data.reading.shards import ShardSet, Split
from launcher.runs.disagreements import DisputedImage, disputed_image
from launcher.runs.page import page_environment
from launcher.runs.predictions import Predictions
from launcher.runs.run_directory import RunDirectory

_LISTED = 1000  # images in the table: reading the name of each takes one access to its shard
_SHOWN = 100  # of these with a picture


def suspected_labels(predictions: Predictions) -> np.ndarray:
    """Return the images whose labels are likely wrong, int64 ``[n]``, the surest predictions first."""
    found, probabilities, right = predictions.guesses, predictions.probabilities.astype(np.float64), predictions.right
    classes = int(max(found.max(initial=0), predictions.labels.max(initial=0))) + 1
    counts = np.bincount(found[right], minlength=classes)
    sums = np.bincount(found[right], probabilities[right], minlength=classes)
    usual = np.divide(sums, counts, out=np.full(classes, np.inf), where=counts > 0)
    suspected = np.flatnonzero(~right & (probabilities >= usual[found]))
    order: np.ndarray = suspected[np.argsort(-probabilities[suspected], kind="stable")]
    return order


def write_label_page(run: RunDirectory, predictions: Predictions, shards: ShardSet, split: Split) -> tuple[Path, int]:
    """Write page and table into ``labels/`` of the run directory; return the page and the number of suspected labels.

    Raises:
        OSError: they cannot be written.
    """
    suspects, classes = suspected_labels(predictions), list(shards.classes)
    folder = run.path / "labels"
    folder.mkdir(exist_ok=True)
    page = folder / f"{predictions.digest[:16]}-{predictions.split}.html"
    table = page.with_suffix(".csv")
    upright = run.recipe().input.upright
    shown = [disputed_image(image, predictions, classes, split, upright) for image in suspects[:_SHOWN].tolist()]
    write_atomically(table, _table(suspects[:_LISTED].tolist(), predictions, classes, split).encode())
    write_atomically(page, _page(predictions, suspects, shown, table.name).encode())
    return page, len(suspects)


def _table(suspects: list[int], predictions: Predictions, classes: list[str], split: Split) -> str:
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    rows.writerow(["image", "label", "predicted", "probability"])
    for image in suspects:
        label, guess = classes[predictions.labels[image]], classes[predictions.guesses[image]]
        rows.writerow([split.sample_name(image), label, guess, f"{float(predictions.probabilities[image]):.4f}"])
    return written.getvalue()


def _page(predictions: Predictions, suspects: np.ndarray, shown: list[DisputedImage], table: str) -> str:
    return (
        page_environment()
        .get_template("label_page.html")
        .render(
            dataset=predictions.dataset,
            split=predictions.split,
            weights=predictions.weights,
            images=len(predictions.labels),
            suspects=suspects,
            listed=min(len(suspects), _LISTED),
            shown=shown,
            table=table,
        )
    )
