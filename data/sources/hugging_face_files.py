"""Reads the Arrow and parquet files of Hugging Face data sets with pyarrow, a few rows at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.printable_text import one_line
from data.sources.label_columns import LABEL_NAMES, SPLIT_NAMES, holds_splits
from recipes.errors import UserError
from recipes.parsing import parse_json

Rest = ParamSpec("Rest")
Found = TypeVar("Found")

_LABELS_AT_ONCE, _IMAGES_AT_ONCE = 4096, 16
# Bytes that pyarrow reads at once. By default, it reads a whole column of all row groups into memory.
_BUFFER = 2**20
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # without it, pyarrow reads a file that is cut between two batches


@dataclass(frozen=True)
class Columns:
    """The columns of a file that are used.

    Attributes:
        image: a struct of `bytes` and `path`.
        label: class numbers or names.
        classes: names of the class numbers; None if the labels are the names.
        split: names of splits; None without such a column.
        split_names: names of their numbers; None if that column holds the names.
        unused: the other columns.
    """

    image: str
    label: str
    classes: list[str] | None
    split: str | None
    split_names: list[str] | None
    unused: list[str]

    def note(self) -> list[str]:
        """Return a sentence about what is used of a file with columns of splits or of anything else."""
        if self.split is None and not self.unused:
            return []
        used = f"images in the column {self.image!r}, labels in {self.label!r}"
        splits = f", splits in {self.split!r}" if self.split else ""
        unused = f"; not used: {', '.join(map(repr, self.unused))}" if self.unused else ""
        return [used + splits + unused]


def _damaged(path: Path, error: Exception) -> UserError:
    reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return UserError(one_line(f"{path} is damaged or missing ({reason}): copy it again"))


def _damage_is_one_sentence(read: Callable[Concatenate[Path, Rest], Found]) -> Callable[Concatenate[Path, Rest], Found]:
    """Return a function that raises a `UserError` for a damaged file: pyarrow raises almost any exception then."""

    @wraps(read)
    def reads(path: Path, *args: Rest.args, **options: Rest.kwargs) -> Found:
        try:
            return read(path, *args, **options)
        except UserError:
            raise
        except Exception as error:
            raise _damaged(path, error) from None

    return reads


@_damage_is_one_sentence
def find_columns(path: Path) -> Columns:
    """Return the columns of images and labels.

    Raises:
        UserError: the file is damaged, or it is not clear which columns are meant.
    """
    schema = _schema(path)
    names = _names_of_classes(schema)
    images = image_columns(path)
    split = next((column for column in schema.names if _is_split(path, column, names.get(column))), None)
    others = [column for column in schema.names if column != split]
    labels = [column for column in others if column in names] or [
        column for column in others if column.lower() in LABEL_NAMES
    ]
    for what, found in (("images", images), ("labels", labels)):
        if len(found) != 1:
            listed = f"several columns of {what} ({', '.join(found)})" if found else f"no column of {what}"
            raise UserError(
                one_line(
                    f"{path} has {listed} among its columns {', '.join(schema.names)}: write it again with one column "
                    f"of images and one of labels"
                )
            )
    unused = [column for column in others if column not in (images[0], labels[0])]
    return Columns(images[0], labels[0], names.get(labels[0]), split, names.get(split or ""), unused)


def _names_of_classes(schema: Any) -> dict[str, list[str]]:
    """Return the names of the class numbers in each `ClassLabel` column, from the metadata of a file."""
    try:
        features = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        labels = {name: about["names"] for name, about in features.items() if about.get("_type") == "ClassLabel"}
    except (ValueError, AttributeError, TypeError, KeyError):  # any JSON may be there
        return {}
    return {
        name: [str(text) for text in names]
        for name, names in labels.items()
        if name in schema.names and isinstance(names, list)
    }


def _is_split(path: Path, column: str, names: list[str] | None) -> bool:
    return column.lower() in SPLIT_NAMES and holds_splits(set(split_cells(path, column, names)))


@_damage_is_one_sentence
def split_cells(path: Path, column: str, names: list[str] | None) -> list[str]:
    """Return the cell of each row in a column of splits as text; `names` are those of its class numbers."""
    cells = read_labels(path, column)
    if names is not None:
        cells = [names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else cell for cell in cells]
    return ["" if cell is None else str(cell) for cell in cells]


@_damage_is_one_sentence
def image_columns(path: Path) -> list[str]:
    """Return the columns that are structs of `bytes` and `path`."""
    pyarrow = _pyarrow(path)
    return [
        field.name
        for field in _schema(path)
        if pyarrow.types.is_struct(field.type) and {part.name for part in field.type} == {"bytes", "path"}
    ]


@_damage_is_one_sentence
def read_labels(path: Path, column: str) -> list[Any]:
    """Return the label of each row, without reading images."""
    return [label for batch in _batches(path, column, _LABELS_AT_ONCE) for label in batch.column(column).to_pylist()]


@_damage_is_one_sentence
def estimated_sizes(path: Path, column: str) -> NDArray[np.int64]:
    """Return the bytes of the image in each row, for parquet their mean in the row group, without reading images.

    Raises:
        UserError: an image is missing, as far as that is known without reading them.
    """
    if path.suffix != ".parquet":
        from pyarrow import compute

        lengths = [compute.binary_length(batch.column(column).field("bytes")) for batch in _batches(path, column, 0)]
        if any(chunk.null_count for chunk in lengths):
            raise _no_bytes(path)
        return np.concatenate([np.asarray(chunk, np.int64) for chunk in lengths] or [np.empty(0, np.int64)])
    opened = _opened(path)
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


@_damage_is_one_sentence
def count_rows(path: Path) -> int:
    """Return the number of rows of a file."""
    if path.suffix == ".parquet":
        return int(_opened(path).metadata.num_rows)
    return sum(batch.num_rows for batch in _batches(path, "", 0))


def _batches(path: Path, column: str, rows: int) -> Iterator[Any]:
    pyarrow, opened = _pyarrow(path), _opened(path)
    try:
        for batch in opened.iter_batches(rows, columns=[column]) if path.suffix == ".parquet" else opened:
            batch.validate(full=True)  # else a position outside of the file ends Python itself
            yield batch
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


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
        opened = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - len(_END_OF_STREAM)))
            if stream.read() != _END_OF_STREAM:
                raise OSError("it ends too early")
        return opened
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _schema(path: Path) -> Any:
    opened = _opened(path)
    return opened.schema_arrow if path.suffix == ".parquet" else opened.schema
