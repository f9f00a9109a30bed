"""CIFAR-10 as distributed: the Python or the binary tarball, or an unpacked folder of one.

The images are stored losslessly, as PNG.

The Python version is pickled. It is read by an unpickler that accepts only numbers, text, lists and plain arrays, so no
code in the file can run.
"""

import io
import pickle
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.printable_text import one_line
from data.sources.base import Listing, Names, Source
from data.sources.files import Files
from data.sources.splits import TEST, TRAIN, with_validation
from recipes.errors import UserError

BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
_PIXELS = 3 * 32 * 32


class Cifar10(Source):
    """60,000 images of 32x32 pixels. The test batch is the test split; validation images are held out of the others."""

    kind = "CIFAR-10"

    def __init__(
        self,
        name: str,
        pixels: list[NDArray[np.uint8]],
        labels: list[NDArray[np.integer]],
        classes: list[str],
        val_fraction: float,
    ):
        self.name = name
        self._pixels = np.concatenate(pixels)
        splits = np.concatenate(
            [
                np.full(len(batch), TRAIN if number < len(pixels) - 1 else TEST, np.uint8)
                for number, batch in enumerate(labels)
            ]
        )
        names = Names(f"{batch}/{row:05d}" for batch, rows in zip(BATCHES, labels) for row in range(len(rows)))
        sizes = np.full(len(splits), _PIXELS, np.int64)
        joined = np.concatenate(labels).astype(np.int32)
        splits, notes = with_validation(splits, names, joined, val_fraction)
        self.listing = Listing(splits, joined, sizes, names, classes, notes)

    def read(self, i: int) -> bytes:
        stored = io.BytesIO()
        Image.fromarray(self._pixels[i].reshape(3, 32, 32).transpose(1, 2, 0)).save(stored, "PNG")
        return stored.getvalue()


def cifar10(files: Files, name: str, val_fraction: float) -> Cifar10 | None:
    """Return the source, or None if these are other files.

    Raises:
        UserError: a file is damaged or has another form.
    """
    row_of = {path.rpartition("/")[2]: row for row, path in enumerate(files.names)}
    if all(batch in row_of for batch in (*BATCHES, "batches.meta")):
        read, meta, endings = _python_batch, _python_names, ("", "batches.meta")
    elif all(f"{batch}.bin" in row_of for batch in BATCHES) and "batches.meta.txt" in row_of:
        read, meta, endings = _binary_batch, _binary_names, (".bin", "batches.meta.txt")
    else:
        return None
    pixels, labels = [], []
    try:
        classes = meta(files.read(row_of[endings[1]]))
        for batch in BATCHES:
            found = read(files.read(row_of[batch + endings[0]]))
            if found[0].shape != (len(found[1]), _PIXELS) or found[0].dtype != np.uint8:
                raise ValueError(f"{batch} is an array {found[0].shape} with {len(found[1])} labels")
            if len(found[1]) and not 0 <= found[1].min() <= found[1].max() < len(classes):
                raise ValueError(f"{batch} has labels outside 0 to {len(classes) - 1}")
            pixels.append(found[0])
            labels.append(found[1])
    except (pickle.UnpicklingError, ValueError, KeyError, TypeError, AttributeError, EOFError, IndexError) as error:
        raise UserError(
            one_line(f"{files.place} is not CIFAR-10 as distributed ({error}): download it again")
        ) from None
    return Cifar10(name, pixels, labels, classes, val_fraction)


def _binary_batch(data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
    return rows[:, 1:], rows[:, 0]


def _binary_names(data: bytes) -> list[str]:
    return data.decode().split()


def _python_batch(data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    batch = _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    return batch["data"].numpy, np.array(batch["labels"], np.int32)


def _python_names(data: bytes) -> list[str]:
    return [str(name) for name in _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()["label_names"]]


class _Dtype:
    """Replaces numpy's dtype while unpickling."""

    def __init__(self, code: str, *_: object):
        if not re.fullmatch("[<|=]?[iu][1248]", code):
            raise pickle.UnpicklingError(f"it holds an array of {code!r} instead of integers")
        self.numpy = np.dtype(code)

    def __setstate__(self, _: object) -> None:
        pass


class _Array:
    """Replaces numpy's array while unpickling: keeps the shape and bytes that make one."""

    def __init__(self, *_: object):
        pass

    def __setstate__(self, state: tuple[object, tuple[int, ...], _Dtype, bool, bytes | str]) -> None:
        _, shape, dtype, fortran_order, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        self.numpy = np.frombuffer(raw, dtype.numpy).reshape(shape, order="F" if fortran_order else "C")


def _encoded(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): "an argument of _reconstruct, which _Array ignores",
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encoded,  # bytes, as Python 3 writes them for Python 2
}


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, numbers, text and arrays of integers; refuses every other class or function by name."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which an array of numbers does not need")
        return _KNOWN[module, name]
