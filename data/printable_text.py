"""Names and other texts in a form that can be hashed, printed and stored anywhere."""

import unicodedata
from collections.abc import Sequence


def printable(name: str) -> str:
    r"""Return a name with its bytes that are not UTF-8 written out, e.g. ``caf\xe9``. Other names stay unchanged.

    Python represents such bytes as lone surrogates, which neither a hash nor a terminal nor a tar accepts.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def composed(name: str) -> str:
    """Return a name in Unicode's composed form (NFC). Copying through macOS changes names to the other form (NFD)."""
    return unicodedata.normalize("NFC", name)


def first_few(names: Sequence[str], most: int) -> str:
    """Return the first names for a sentence, e.g. ``ant, bee, …``: at most so many, and a sign if there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def one_line(text: str) -> str:
    r"""Return a text for one line of a terminal, with control characters written out, e.g. ``\x1b``.

    They may come from the name of a file. A terminal obeys them: they colour, move or hide what is printed.
    """
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
