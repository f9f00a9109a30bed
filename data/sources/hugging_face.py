"""Data sets of Hugging Face on the disk: folders of `save_to_disk`, and parquet files as the hub has them.

The layouts are those of `datasets` 2 and later. Neither that library nor any code beside the data is needed, only
pyarrow:

- ``dataset_dict.json`` beside a folder per split, or one such folder: ``state.json`` lists the Arrow stream files.
- parquet files below a folder, or one of them, whose names or folders say their splits, e.g.
  ``data/train-00000-of-00001.parquet``.

An image is a struct of `bytes` and `path`. Its label is a `ClassLabel` with names, or a column with a usual name.
"""

import os
import re
import tempfile
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from data.image_formats import IMAGE_ENDINGS
from data.printable_text import one_line, printable
from data.sources.base import Listing, Names, Source, require_classes
from data.sources.class_labels import cleaned_labels, merged_forms, numbered
from data.sources.files import hidden
from data.sources.hugging_face_files import (
    Columns,
    count_rows,
    estimated_sizes,
    find_columns,
    image_columns,
    read_images,
    read_labels,
    split_cells,
)
from data.sources.splits import SPLITS, TRAIN, split_of_name, with_validation
from recipes.errors import UserError
from recipes.parsing import parse_json

_DICT, _STATE = "dataset_dict.json", "state.json"
_PART = re.compile(r"(.*)-(\d+)-of-(\d+)")
_ONE_CLASS = "write it again with one class per image"


class HuggingFaceSet(Source):
    """The labelled images of Arrow or parquet files.

    The listing reads labels only. Before they are read, the images are copied to a temporary file without a name,
    because these formats read whole groups of rows. Forked processes share that file, and a process that receives this
    by pickle makes it again.
    """

    kind = "Hugging Face data set"

    def __init__(self, root: Path, files: list[Path], name: str, val_fraction: float):
        self.name, self._root = name, root
        self._files: list[tuple[Path, str, NDArray[np.bool_]]] = []  # with column of images, and the rows that are kept
        self._copy: IO[bytes] | None = None
        self._ends = np.empty(0, np.int64)
        labels: list[Any] = []
        splits: list[int] = []
        sizes: list[NDArray[np.int64]] = []
        left_out: Counter[str] = Counter()
        used: list[str] = []
        known = [_split(root, path) for path in files]
        classes: list[str] | None = None
        for path, split in zip(files, known):
            if split is None and any(other is not None for other in known):
                left_out[f"images of {path.relative_to(root)}, whose name says no split"] += count_rows(path)
                continue
            columns = find_columns(path)
            if classes is not None and columns.classes is not None and columns.classes != classes:
                raise UserError(f"{path} has class names other than those of {files[0]}: shard them separately")
            classes = columns.classes if classes is None else classes
            found, of_rows = read_labels(path, columns.label), _splits_of_rows(path, columns, split)
            kept = np.array([label != -1 and _text(label) != "" for label in found], bool)
            in_split = np.array([of_row is not None for of_row in of_rows], bool)
            left_out["images without a label"] += len(found) - int(kept.sum())
            left_out[f"images whose {columns.split!r} names no split"] += int((kept & ~in_split).sum())
            kept &= in_split
            labels += [label for label, is_kept in zip(found, kept) if is_kept]
            splits += [of_row for of_row, is_kept in zip(of_rows, kept) if of_row is not None and is_kept]
            sizes.append(estimated_sizes(path, columns.image)[kept])
            used += columns.note()
            self._files.append((path, columns.image, kept))
        if classes is None:
            given = [_text(label) for label in labels]
            texts = cleaned_labels(given, f"the column of labels of {root}", _ONE_CLASS)
            used += merged_forms(given)
            numbers, classes = numbered(texts, str(root), _ONE_CLASS)
        else:
            _require_numbers(labels, len(classes), root)
            require_classes(classes, str(root))
            numbers = np.array(labels, np.int32)
        names = Names(self._names())
        own, held_out = with_validation(np.array(splits, np.uint8), names, numbers, val_fraction)
        counted = [f"left out {count:,} {what}" for what, count in left_out.items() if count]
        notes = [*dict.fromkeys(used), *counted, *held_out]
        self.listing = Listing(own, numbers, np.concatenate(sizes), names, classes, notes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copy": None}

    def prepare(self) -> None:
        if self._copy is not None:
            return
        sizes = array("q")
        try:
            copy = tempfile.TemporaryFile()  # noqa: SIM115  it stays open for as long as this object
            for path, column, kept in self._files:
                for image, is_kept in zip(read_images(path, column), kept):
                    if is_kept:
                        copy.write(image)
                        sizes.append(len(image))
            copy.flush()
        except OSError as error:
            raise UserError(
                f"the images of {self._root} cannot be copied into the folder for temporary files ({error.strerror}): "
                f"make room there, or name another folder in TMPDIR"
            ) from None
        self._copy, self._ends = copy, np.cumsum(np.frombuffer(sizes, np.int64))

    def read(self, i: int) -> bytes:
        self.prepare()
        assert self._copy is not None
        start = int(self._ends[i - 1]) if i else 0
        return os.pread(self._copy.fileno(), int(self._ends[i]) - start, start)

    def _names(self) -> Iterator[str]:
        for path, _, kept in self._files:
            place = path.relative_to(self._root).with_suffix("")
            yield from (f"{place}/{row:07d}" for row in np.flatnonzero(kept).tolist())


def hugging_face(path: Path, name: str, val_fraction: float) -> HuggingFaceSet | None:
    """Return the source, or None if the path is no data set of this kind.

    Raises:
        UserError: it is damaged, or it is not clear which columns are meant.
    """
    root = path if path.is_dir() else path.parent
    if (path / _DICT).is_file():
        splits = _listed(path / _DICT, "splits")
        files = [file for split in splits for file in _arrow_files(path / Path(split).name)]
    elif (path / _STATE).is_file():
        files = _arrow_files(path)
    else:
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []
        # A table of labels beside images is parquet too, but holds no images.
        if not files or not path.exists() or not image_columns(files[0]):
            return None
        _refuse_several_configurations(path, files)
    if not files:
        raise UserError(f"{path} names no files of images: copy the whole folder")
    missing = _missing_parts(files) if path.is_dir() else []
    found = HuggingFaceSet(root, files, name, val_fraction)
    found.notes.extend(missing)
    if images := _images_beside(path):
        example = printable(str(images[0].relative_to(path)))
        found.notes.append(f"ignored {len(images):,} images beside the files of the data set, e.g. {example}")
    return found


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


def _missing_parts(files: list[Path]) -> list[str]:
    """Return sentences about files that are missing: names such as ``train-00001-of-00003`` count those of a split.

    Raises:
        UserError: a split has files of two versions, which hold the same images.
    """
    numbers: dict[tuple[Path, str], dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for file in files:
        if part := _PART.fullmatch(file.stem):
            numbers[file.parent, part[1]][int(part[3])].add(int(part[2]))
    notes = []
    for (folder, split), totals in numbers.items():
        if len(totals) > 1:
            listed = " and of ".join(str(total) for total in sorted(totals))
            raise UserError(
                f"{folder} has files of two versions of the split {split}, one of {listed} files: keep one version"
            )
        [(total, found)] = totals.items()
        if len(found) < total:
            notes.append(f"only {len(found):,} of the {total:,} files of the split {split} are there")
    return notes


def _images_beside(path: Path) -> list[Path]:
    """Return the image files in the folder of a data set."""
    if not path.is_dir():
        return []
    images = (file for file in path.rglob("*") if file.name.lower().endswith(IMAGE_ENDINGS))
    return sorted(file for file in images if not hidden(file.relative_to(path).as_posix()))


def _text(label: object) -> str:
    """Return a label as text; empty if it is missing."""
    return "" if label is None or label != label else str(label)


def _splits_of_rows(path: Path, columns: Columns, split: int | None) -> list[int | None]:
    """Return the split of each row: that in its column of splits, or else that of the file, by default `TRAIN`.

    `datasets` calls the file of any table "train". So a column of splits says more.

    Raises:
        UserError: the file is named as another split, and a row disagrees.
    """
    if columns.split is None:
        return [TRAIN if split is None else split] * count_rows(path)
    found = [split_of_name(cell) for cell in split_cells(path, columns.split, columns.split_names)]
    if split not in (None, TRAIN) and (others := sorted({SPLITS[row] for row in found if row not in (None, split)})):
        raise UserError(
            f"{path} is named as the {SPLITS[split]} split, but its column {columns.split!r} names "
            f"{' and '.join(others)} rows: rename the file, or remove the column"
        )
    return found


def _require_numbers(labels: list[Any], classes: int, root: Path) -> None:
    """Raise a `UserError` if a label is not the number of one of the classes that the files name."""
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < classes:
            raise UserError(
                f"{root} has the label {label!r}, but names only {classes} classes, which are numbered from 0: "
                f"make it again"
            )


def _arrow_files(folder: Path) -> list[Path]:
    state = _json(folder / _STATE)
    if state.get("_indices_files"):
        raise UserError(f"{folder} selects its rows by a file of indices: save it with a newer version of `datasets`")
    return [folder / Path(name).name for name in _listed(folder / _STATE, "_data_files", "filename")]


def _listed(path: Path, key: str, inner: str | None = None) -> list[str]:
    """Return the texts in a list of a JSON file, or those under a key of the objects in it.

    Raises:
        UserError: the file has another form.
    """
    found = _json(path).get(key, [])
    if isinstance(found, list) and inner is not None:
        found = [entry.get(inner) if isinstance(entry, dict) else None for entry in found]
    if not isinstance(found, list) or not all(isinstance(text, str) and text and "\0" not in text for text in found):
        raise UserError(f"{path} does not list its {key.strip('_')} as `datasets` writes them: copy the whole folder")
    return [str(text) for text in found]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(one_line(f"{path} cannot be read ({error}): copy the whole folder")) from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object: copy the whole folder")
    return found


def _split(root: Path, path: Path) -> int | None:
    """Return the split in the name of a file, or else in that of its nearest folder, as an index into `SPLITS`."""
    parts = path.relative_to(root).parts
    return next((split for part in reversed(parts) if (split := split_of_name(part)) is not None), None)
