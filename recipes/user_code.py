"""Code of the user that a recipe names: modules that register a model, a loss, an optimizer, a transform or a source.

A module is imported where it is first needed: in the command, in every rank and in every loader worker. It is searched
for like any Python module, and in the working directory last, so that it cannot replace an installed package.
"""

import difflib
import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import field_validator

from recipes.errors import UserCodeError, UserError
from recipes.sections import Section, added_in

Registered = TypeVar("Registered")


class CodeSettings(Section):
    """The section `code`: the user's modules, and which of the registered parts the run uses."""

    modules: tuple[str, ...] = added_in(
        "0.2", (), "Python modules of your own to import, e.g. [my_package.my_module]; also `--import`"
    )
    loss: str | None = added_in("0.2", None, "name of a registered loss; null: the loss of the section `loss`")
    optimizer: str | None = added_in(
        "0.2", None, "name of a registered optimizer; null: the one that `optimizer.name` says"
    )
    transform: str | None = added_in(
        "0.2", None, "name of a registered transform of training images, applied after all others; null: none"
    )

    @field_validator("modules")
    @classmethod
    def _dotted_names(cls, modules: tuple[str, ...]) -> tuple[str, ...]:
        for module in modules:
            if module.endswith(".py") or not _is_dotted_name(module):
                likely = ".".join(filter(_is_dotted_name, Path(module.removesuffix(".py")).parts))
                raise ValueError(
                    f"code.modules names {module!r}, which is not the name of a Python module: write "
                    f"{likely or 'my_package.my_module'}"
                )
        return modules


class Registry(Generic[Registered]):
    """Parts of one kind that the user's code registers by name."""

    def __init__(self, kind: str):
        self.kind = kind
        self._parts: dict[str, Registered] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Return a decorator that registers a function or class under `name` and returns it unchanged.

        Raises:
            UserError: by the decorator, if another function or class has the name.
        """

        def decorate(part: Registered) -> Registered:
            there = self._parts.get(name)
            # A module that is imported again, e.g. in a notebook, replaces its own parts.
            if there is not None and _place(there) != _place(part):
                raise UserError(
                    f"two parts of your own code are registered as the {self.kind} {name!r}, {_place(there)} and "
                    f"{_place(part)}: give one of them another name"
                )
            self._parts[name] = part
            return part

        return decorate

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def get(self, name: str, modules: Iterable[str]) -> Registered:
        """Return the part of that name, after importing the modules.

        Raises:
            UserError: a module cannot be imported, or nothing is registered under the name; suggests the nearest one.
        """
        modules = list(modules)
        import_modules(modules)
        if name in self._parts:
            return self._parts[name]
        near = difflib.get_close_matches(name, self._parts, n=1)
        imported = f"{', '.join(modules)} registers none" if modules else "no module of yours is imported (--import)"
        advice = f"did you mean {near[0]!r}?" if near else f"{imported} of this name"
        raise UserError(f"there is no {self.kind} {name!r}: {advice}")


def import_modules(modules: Iterable[str]) -> None:
    """Import the user's modules, unless they are imported already.

    Raises:
        UserError: there is no such module.
        UserCodeError: it raises an exception.
    """
    for name in modules:
        if name in sys.modules:
            continue
        _search_working_directory()
        if not _exists(name):
            raise UserError(
                f"the module {name} of your own code is not found: start bigbatch in the folder that holds it, or "
                f"install it"
            )
        with running(f"importing {name}"):
            importlib.import_module(name)


@contextmanager
def running(what: str, passes: Callable[[Exception], bool] = lambda error: False) -> Iterator[None]:
    """Turn an exception of the user's code inside the block into a UserCodeError.

    Args:
        what: what was running, for the message, e.g. "loss focal".
        passes: whether an exception is not an error of the code, e.g. because memory ran out, and is left as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if passes(error):
            raise
        first = (str(error).splitlines() or [""])[0]
        advice = "install the module or correct your code" if isinstance(error, ImportError) else "correct your code"
        message = f"{what} failed with {type(error).__name__}{f' ({first})' if first else ''}: {advice}"
        raise UserCodeError(message, "".join(traceback.format_exception(_without_ours(error)))) from None


def code_to_copy(modules: Iterable[str]) -> list[Path]:
    """Return the packages (folders) and modules (files) of the user's code that are not installed packages.

    A job copies them, so that later edits do not affect it. The whole top-level package of a module is copied.

    Raises:
        UserError: there is no such module.
    """
    installed = [Path(sysconfig.get_path(key)).resolve() for key in ("purelib", "platlib", "stdlib")]
    found: list[Path] = []
    for name in modules:
        _search_working_directory()
        if not _exists(name):
            raise UserError(f"the module {name} of your own code is not found: submit from the folder that holds it")
        top = importlib.util.find_spec(name.partition(".")[0])
        assert top is not None
        places = list(top.submodule_search_locations or []) or ([str(top.origin)] if top.has_location else [])
        if not places:  # built into Python
            continue
        path = Path(places[0]).resolve()
        if path not in found and not any(path.is_relative_to(folder) for folder in installed):
            found.append(path)
    return found


def _place(part: object) -> str:
    """Return the dotted place of a function or class in its module."""
    return f"{getattr(part, '__module__', '')}.{getattr(part, '__qualname__', type(part).__qualname__)}"


def _search_working_directory() -> None:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
        importlib.invalidate_caches()


def _exists(name: str) -> bool:
    """Return whether a module is found; its parent packages are imported, as Python's search requires."""
    parents = name.split(".")[:-1]
    for depth in range(1, len(parents) + 1):
        parent = ".".join(parents[:depth])
        if not _is_found(parent):
            return False
        with running(f"importing {parent}"):
            importlib.import_module(parent)
    return _is_found(name)


def _is_found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # the parent is a module and no package; or `__main__`, without a spec
        return False


def _is_dotted_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _without_ours(error: Exception) -> Exception:
    """Return the error with a traceback that starts in the user's code: the frames above it are bigbatch's."""
    here, frame = {__file__, importlib.__file__}, error.__traceback__
    first = frame
    while frame is not None and (
        frame.tb_frame.f_code.co_filename in here or "importlib" in frame.tb_frame.f_code.co_filename
    ):
        frame = frame.tb_next
    return error.with_traceback(frame or first)
