"""Reads the Arrow and parquet files of Hugging Face data sets with pyarrow, a few rows at a time."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.sources.label_columns import LABEL_NAMES
from recipes.errors import UserError

_LABELS_AT_ONCE, _IMAGES_AT_ONCE = 4096, 16
# Bytes that pyarrow reads at once. By default, it reads a whole column of all row groups into memory.
_BUFFER = 2**20


@dataclass(frozen=True)
class Columns:
    """The columns of a file that are used.

    Attributes:
        image: a struct of `bytes` and `path`.
        label: class numbers or names.
        classes: names of the class numbers; None if the labels are the names.
    """

    image: str
    label: str
    classes: list[str] | None


def find_columns(path: Path) -> Columns:
    """Return the columns of images and labels.

    Raises:
        UserError: the file is damaged, or it is not clear which columns are meant.
    """
    schema = _schema(path)
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        features = {}
    images = image_columns(path)
    named = {column: about.get("names") for column, about in features.items() if about.get("_type") == "ClassLabel"}
    labels = list(named) or [column for column in schema.names if column.lower() in LABEL_NAMES]
    for what, found in (("images", images), ("labels", labels)):
        if len(found) != 1:
            listed = f"several columns of {what} ({', '.join(found)})" if found else f"no column of {what}"
            raise UserError(
                f"{path} has {listed} among its columns {', '.join(schema.names)}: write it again with one column of "
                f"images and one of labels"
            )
    return Columns(images[0], labels[0], named.get(labels[0]))


def image_columns(path: Path) -> list[str]:
    """Return the columns that are structs of `bytes` and `path`."""
    pyarrow = _pyarrow(path)
    return [
        field.name
        for field in _schema(path)
        if pyarrow.types.is_struct(field.type) and {part.name for part in field.type} == {"bytes", "path"}
    ]


def read_labels(path: Path, column: str) -> list[Any]:
    """Return the label of each row, without reading images."""
    return [label for batch in _batches(path, column, _LABELS_AT_ONCE) for label in batch.column(column).to_pylist()]


def estimated_sizes(path: Path, column: str) -> NDArray[np.int64]:
    """Return the bytes of the image in each row, for parquet their mean in the row group, without reading images.

    Raises:
        UserError: an image is missing, as far as that is known without reading them.
    """
    opened = _opened(path)
    if path.suffix != ".parquet":
        from pyarrow import compute

        lengths = [compute.binary_length(batch.column(column).field("bytes")) for batch in opened]
        if any(chunk.null_count for chunk in lengths):
            raise _no_bytes(path)
        return np.concatenate([np.asarray(chunk, np.int64) for chunk in lengths] or [np.empty(0, np.int64)])
    groups = [opened.metadata.row_group(number) for number in range(opened.metadata.num_row_groups)]
    leaf = [opened.metadata.schema.column(number).path for number in range(opened.metadata.num_columns)].index(
        f"{column}.bytes"
    )
    if any(chunk.statistics is not None and chunk.statistics.null_count for chunk in (g.column(leaf) for g in groups)):
        raise _no_bytes(path)
    counts = [group.num_rows for group in groups]
    means = [group.column(leaf).total_uncompressed_size // max(1, group.num_rows) for group in groups]
    return np.repeat(np.array(means, np.int64), counts)


def read_images(path: Path, column: str) -> Iterator[bytes]:
    """Yield the encoded image of each row.

    Raises:
        UserError: the file is damaged, or names an image instead of holding it.
    """
    for batch in _batches(path, column, _IMAGES_AT_ONCE):
        for found in batch.column(column):
            data = found["bytes"].as_py() if found.is_valid else None
            if data is None:
                raise _no_bytes(path)
            yield data


def count_rows(path: Path) -> int:
    """Return the number of rows of a file."""
    opened = _opened(path)
    return int(opened.metadata.num_rows) if path.suffix == ".parquet" else sum(batch.num_rows for batch in opened)


def _batches(path: Path, column: str, rows: int) -> Iterator[Any]:
    pyarrow, opened = _pyarrow(path), _opened(path)
    try:
        yield from opened.iter_batches(rows, columns=[column]) if path.suffix == ".parquet" else opened
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): copy it again") from None


def _no_bytes(path: Path) -> UserError:
    return UserError(f"{path} names its images by path instead of holding them: embed them first")


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path} is read with pyarrow: run `pip install 'bigbatch[formats]'`") from None
    return pyarrow


def _opened(path: Path) -> Any:
    """Return the open parquet file or Arrow stream; both have the attribute `schema` in some form."""
    pyarrow = _pyarrow(path)
    try:
        if path.suffix == ".parquet":
            return pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged or missing ({error}): copy it again") from None


def _schema(path: Path) -> Any:
    opened = _opened(path)
    return opened.schema_arrow if path.suffix == ".parquet" else opened.schema
