"""Data sets of Hugging Face on the disk: folders of `save_to_disk`, and parquet files as the hub has them.

The layouts are those of `datasets` 2 and later. Neither that library nor any code beside the data is needed, only
pyarrow:

- ``dataset_dict.json`` beside a folder per split, or one such folder: ``state.json`` lists the Arrow stream files.
- parquet files below a folder, or one of them, whose names or folders say their splits, e.g.
  ``data/train-00000-of-00001.parquet``.

An image is a struct of `bytes` and `path`. Its label is a `ClassLabel` with names, or a column with a usual name.
"""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from data.sources.base import Listing, Names, Source, require_classes
from data.sources.label_columns import LABEL_NAMES
from data.sources.splits import TRAIN, split_of_name, with_validation
from recipes.errors import UserError

_DICT, _STATE = "dataset_dict.json", "state.json"


class HuggingFaceSet(Source):
    """The labelled images of Arrow or parquet files.

    The images are copied to a temporary file without a name first, because these formats read whole groups of rows.
    Forked processes share that file, and a process that receives this by pickle makes it again.
    """

    kind = "Hugging Face data set"

    def __init__(self, root: Path, files: list[Path], name: str, val_fraction: float):
        self.name, self._root, self._paths = name, root, files
        labels, splits, names, sizes, offsets = [], [], [], [], []
        left_out: Counter[str] = Counter()
        known = [_split(root, path) for path in files]
        classes: list[str] | None = None
        end = 0
        self._file: IO[bytes] | None = tempfile.TemporaryFile()  # noqa: SIM115  it stays open for as long as this object
        for path, split in zip(files, known):
            if split is None and any(other is not None for other in known):
                left_out[f"images of {path.relative_to(root)}, whose name says no split"] += _count(path)
                continue
            columns = _columns(path)
            if classes is not None and columns[2] is not None and columns[2] != classes:
                raise UserError(f"{path} has other class names than {files[0]}: shard them separately")
            classes = columns[2] if classes is None else classes
            for row, (image, label) in enumerate(_rows(path, columns[0], columns[1])):
                if label is None or label == -1:
                    left_out["images without a label"] += 1
                    continue
                self._file.write(image)
                labels.append(label)
                splits.append(TRAIN if split is None else split)
                names.append(f"{path.relative_to(root).with_suffix('')}/{row:07d}")
                sizes.append(len(image))
                offsets.append(end)
                end += len(image)
        self._file.flush()
        self._offsets = np.array(offsets, np.int64)
        if classes is None:
            classes = sorted({str(label) for label in labels})
            labels = [classes.index(str(label)) for label in labels]
        elif wrong := [label for label in labels if not 0 <= label < len(classes or ())]:
            raise UserError(f"{root} has the label {wrong[0]}, but names only {len(classes)} classes: make it again")
        require_classes(classes, str(root))
        numbers = np.array(labels, np.int32)
        found, held_out = with_validation(np.array(splits, np.uint8), names, numbers, val_fraction)
        notes = [f"left out {count:,} {what}" for what, count in left_out.items()] + held_out
        self.listing = Listing(found, numbers, np.array(sizes, np.int64), Names(names), classes, notes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def read(self, i: int) -> bytes:
        if self._file is None:
            self._file = HuggingFaceSet(self._root, self._paths, self.name, 0)._file
        assert self._file is not None
        return os.pread(self._file.fileno(), int(self.listing.sizes[i]), int(self._offsets[i]))


def hugging_face(path: Path, name: str, val_fraction: float) -> HuggingFaceSet | None:
    """Return the source, or None if the path is no data set of this kind.

    Raises:
        UserError: it is damaged, or it is not clear which columns are meant.
    """
    root = path if path.is_dir() else path.parent
    if (path / _DICT).is_file():
        splits = _json(path / _DICT).get("splits", [])
        files = [file for split in splits for file in _arrow_files(path / Path(str(split)).name)]
    elif (path / _STATE).is_file():
        files = _arrow_files(path)
    else:
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []
        # A table of labels beside images is parquet too, but holds no images.
        if not files or not path.exists() or not _image_columns(files[0]):
            return None
        _refuse_several_configurations(path, files)
    if not files:
        raise UserError(f"{path} names no files of images: copy the whole folder")
    return HuggingFaceSet(root, files, name, val_fraction)


def _refuse_several_configurations(path: Path, files: list[Path]) -> None:
    """Raise a `UserError` if the files lie in several folders that are not splits: these may hold the same images."""
    folders = {
        "/".join(part for part in file.relative_to(path).parts[:-1] if split_of_name(part) is None)
        for file in files
        if file != path
    }
    if len(folders) > 1:
        listed = ", ".join(sorted(folder or "." for folder in folders))
        raise UserError(f"{path} has parquet files in several folders ({listed}): give the folder of one of them")


def _arrow_files(folder: Path) -> list[Path]:
    state = _json(folder / _STATE)
    if state.get("_indices_files"):
        raise UserError(f"{folder} selects its rows by a file of indices: save it with a newer version of `datasets`")
    return [folder / Path(str(file["filename"])).name for file in state.get("_data_files", [])]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy the whole folder") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object: copy the whole folder")
    return found


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
            return pyarrow.parquet.ParquetFile(path)
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged or missing ({error}): copy it again") from None


def _schema(path: Path) -> Any:
    opened = _opened(path)
    return opened.schema_arrow if path.suffix == ".parquet" else opened.schema


def _image_columns(path: Path) -> list[str]:
    """Return the columns that are structs of `bytes` and `path`."""
    pyarrow = _pyarrow(path)
    return [
        field.name
        for field in _schema(path)
        if pyarrow.types.is_struct(field.type) and {part.name for part in field.type} == {"bytes", "path"}
    ]


def _columns(path: Path) -> tuple[str, str, list[str] | None]:
    """Return the columns of images and labels, and the class names; None if the labels are the names."""
    schema = _schema(path)
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        features = {}
    images = _image_columns(path)
    named = {column: about.get("names") for column, about in features.items() if about.get("_type") == "ClassLabel"}
    labels = list(named) or [column for column in schema.names if column.lower() in LABEL_NAMES]
    for what, found in (("images", images), ("labels", labels)):
        if len(found) != 1:
            listed = f"several columns of {what} ({', '.join(found)})" if found else f"no column of {what}"
            raise UserError(
                f"{path} has {listed} among its columns {', '.join(schema.names)}: write it again with one column of "
                f"images and one of labels"
            )
    return images[0], labels[0], named.get(labels[0])


def _rows(path: Path, image: str, label: str) -> Iterator[tuple[bytes, Any]]:
    """Yield the encoded image and the label of each row."""
    pyarrow, opened = _pyarrow(path), _opened(path)
    try:
        batches = opened.iter_batches(64, columns=[image, label]) if path.suffix == ".parquet" else opened
        for batch in batches:
            for found, value in zip(batch.column(image), batch.column(label)):
                data = found["bytes"].as_py() if found.is_valid else None
                if data is None:
                    raise UserError(f"{path} names its images by path instead of holding them: embed them first")
                yield data, value.as_py()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): copy it again") from None


def _count(path: Path) -> int:
    opened = _opened(path)
    return int(opened.metadata.num_rows) if path.suffix == ".parquet" else sum(batch.num_rows for batch in opened)


def _split(root: Path, path: Path) -> int | None:
    """Return the split in the name of a file, or else in that of its nearest folder, as an index into `SPLITS`."""
    parts = path.relative_to(root).parts
    return next((split for part in reversed(parts) if (split := split_of_name(part)) is not None), None)
