"""Reads recipes: a catalogue name or a YAML file, plus ``key=value`` overrides, becomes a validated `Recipe`.

Every error names the key and suggests what to type instead.
"""

import difflib
import os
import reprlib
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from recipes.errors import UserError
from recipes.local_paths import local_path
from recipes.parsing import parse_own_yaml, parse_yaml, parse_yaml_value
from recipes.schema import Recipe, Values
from recipes.sections import BatchSettings, Count

_ALIKE = 0.6  # smallest similarity, out of 1, at which a key is suggested; difflib's own default cutoff
_SHORT = reprlib.Repr()  # how a message shows a wrong value, of which a file may have any amount
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 200, 200
_CATALOGUE = resources.files("recipes") / "catalogue"


def recipe_names() -> list[str]:
    """Return the sorted names of the catalogue's recipes."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _CATALOGUE.iterdir() if entry.name.endswith(".yaml"))


def load(name_or_file: str | Path, overrides: str | list[str] | tuple[str, ...] = ()) -> Recipe:
    """Return the recipe with this catalogue name, or in this YAML file, with ``section.key=value`` overrides applied.

    Raises:
        UserError: there is no such recipe, or a key is unknown or has an impossible value; suggests the nearest one.
    """
    values = _with_base(str(name_or_file))
    values.setdefault("name", Path(name_or_file).stem)
    changes = [overrides] if isinstance(overrides, str) else overrides
    return _overridden(values, changes, lambda: _batch_of_lr(str(name_or_file)))


def override(recipe: Recipe, overrides: list[str] | tuple[str, ...]) -> Recipe:
    """Return the recipe with ``section.key=value`` overrides applied.

    Raises:
        UserError: as in `load`.
    """
    return _overridden(recipe.to_dict(), overrides, lambda: recipe.lr_batch)


def with_modules(recipe: Recipe, modules: list[str]) -> Recipe:
    """Return the recipe with these modules of the user's own code after those that it names itself.

    Raises:
        UserError: as in `load`.
    """
    if not modules:
        return recipe
    values = recipe.to_dict()
    values["code"]["modules"] = list(dict.fromkeys([*recipe.code.modules, *modules]))
    return validate(values).with_lr_batch(recipe.lr_batch)


def validate(values: Values) -> Recipe:
    """Return the recipe with these plain values, e.g. as read from a run directory.

    Raises:
        UserError: as in `load`.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(_sentence(error)) from None


def config_keys() -> list[str]:
    """Return every key that a recipe or an override may name, in dotted form, e.g. ``optimizer.lr``."""
    return list(_dotted(Recipe))


def _batch_of_lr(name_or_file: str) -> int | None:
    """Return the global batch of the layer (a base, or the recipe itself) that last sets the learning rate.

    A batch that is not valid does not count: a later layer or an override has replaced it. None: no other is known.
    """
    batch: int | None = BatchSettings().global_
    found = batch
    for values in _layers(name_or_file, seen=()):
        chosen, optimizer = values.get("batch"), values.get("optimizer")
        if isinstance(chosen, dict) and "global" in chosen:
            batch = _batch_size(chosen["global"])
            found = batch if found is None else found
        if isinstance(optimizer, dict) and "lr" in optimizer:
            found = batch
    return found


def _batch_size(value: object) -> int | None:
    try:
        return TypeAdapter(Count).validate_python(value)
    except ValidationError:
        return None


def _overridden(values: Values, overrides: list[str] | tuple[str, ...], lr_batch: Callable[[], int | None]) -> Recipe:
    """Return the recipe of changed values.

    Args:
        lr_batch: returns the batch size that the learning rate in `values` was chosen for. An override of the learning
            rate is chosen for the batch size beside it.
    """
    changes = [_parse(text) for text in overrides]
    for key, value in changes:
        _set(values, key, value)
    recipe = validate(values)
    chosen_anew = any(key == "optimizer.lr" for key, _ in changes)
    return recipe if chosen_anew else recipe.with_lr_batch(lr_batch())


def _dotted(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        key = prefix + (field.alias or name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _dotted(field.annotation, key + ".")
        else:
            yield key


def _with_base(name_or_file: str) -> Values:
    """Return the values of a recipe merged with those of its bases."""
    merged: Values = {}
    for values in _layers(name_or_file, seen=()):
        # A recipe's title and sources describe that recipe alone, so they are not inherited.
        for own_to_each in ("name", "summary", "source"):
            merged.pop(own_to_each, None)
        merged = _merged(merged, values)
    return merged


def _layers(name_or_file: str, seen: tuple[str, ...]) -> list[Values]:
    """Return the values of a recipe's bases and its own, which come last."""
    values = _read(name_or_file)
    if _place(name_or_file) in map(_place, seen):
        raise UserError(
            f"recipe {name_or_file} extends itself ({' -> '.join((*seen, name_or_file))}): remove one `base:`"
        )
    base = values.pop("base", None)
    if base is None:
        return [values]
    if str(base).endswith((".yaml", ".yml")) and name_or_file.endswith((".yaml", ".yml")):
        base = str(Path(name_or_file).parent / local_path(str(base)))
    return [*_layers(str(base), (*seen, name_or_file)), values]


def _place(name_or_file: str) -> str:
    """Return what a file and the other paths to it have in common; the name of a recipe of the catalogue."""
    return os.path.realpath(local_path(name_or_file)) if name_or_file.endswith((".yaml", ".yml")) else name_or_file


def _read(name_or_file: str) -> Values:
    if name_or_file.endswith((".yaml", ".yml")):
        path = local_path(name_or_file)
        if not path.is_file():
            raise UserError(f"there is no recipe file {name_or_file}")
    elif name_or_file in recipe_names():
        own: Values = parse_own_yaml((_CATALOGUE / f"{name_or_file}.yaml").read_text(encoding="utf-8"))
        return own
    else:
        near = difflib.get_close_matches(name_or_file, recipe_names(), n=1)
        advice = f"; did you mean {near[0]!r}?" if near else ":"
        raise UserError(f"there is no recipe {name_or_file!r}{advice} `bigbatch recipes` lists all")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{name_or_file} is not valid YAML: {' '.join(str(error).split())}") from None
    except UnicodeDecodeError:
        raise UserError(f"{name_or_file} is not a text file in UTF-8: save it in that encoding") from None
    except OSError as error:
        raise UserError(f"{name_or_file} cannot be read ({error.strerror}): check its permissions") from None
    if not isinstance(values, dict):
        raise UserError(f"{name_or_file} must be a mapping of recipe keys to values")
    return values


def _merged(base: Values, own: Values) -> Values:
    result = dict(base)
    for key, value in own.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = _merged(base[key], value) if nested else value
    return result


def _parse(override: str) -> tuple[str, object]:
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"override {override!r} is not of the form key=value, e.g. optimizer.lr=2e-3")
    if key in _sections():
        raise UserError(f"{key} is a section, not a key; {_keys_of(key, text)}")
    if key not in config_keys():
        raise UserError(_unknown(key, config_keys()))
    if not text.strip():
        raise UserError(f"override {override!r} has no value: give one, or write {key}=null for none")
    return key, parse_yaml_value(text)


def _set(values: Values, key: str, value: object) -> None:
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values[last] = value


def _sections() -> list[str]:
    return list(dict.fromkeys(key.partition(".")[0] for key in config_keys() if "." in key))


def _keys_of(section: str, value: str) -> str:
    """Return a suggestion of the section's likeliest key for a value, followed by all keys of the section."""
    keys = [key for key in config_keys() if key.startswith(f"{section}.")]
    meant = f"{section}.name" if f"{section}.name" in keys else keys[0]
    return f"did you mean {meant}={value}? Its keys are {', '.join(keys)}"


def _unknown(key: str, known: list[str]) -> str:
    """Return a sentence that says that `key` is unknown and suggests the most similar known key, if one is similar.

    Two keys are compared by their whole dotted paths and by their last parts alone; the higher similarity counts.
    """

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        last = difflib.SequenceMatcher(None, key.rsplit(".")[-1], candidate.rsplit(".")[-1]).ratio()
        return max(whole, last) + 0.01 * whole

    # Prefer keys with as many parts: a misspelt section name should suggest a section, not a key such as mix.mode.
    depth = key.count(".")
    nearest = max(known, key=lambda candidate: likeness(candidate) + 0.2 * (candidate.count(".") == depth))
    advice = (
        f"; did you mean {nearest!r}?"
        if likeness(nearest) >= _ALIKE
        else ": `bigbatch recipes NAME` prints every key of a recipe"
    )
    return f"unknown key {key!r}{advice}"


def _sentence(error: ValidationError) -> str:
    """Return one sentence about the first mistake that pydantic found."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    while (
        location
        and ".".join(location) not in config_keys()
        and len(location) > 1
        and first["type"] != "extra_forbidden"
    ):
        location.pop()  # pydantic's location continues below the key, into members of unions and tuples
    key = ".".join(location)
    if first["type"] == "extra_forbidden" and key in config_keys():  # with a dot in a file, which nests its sections
        section, _, name = key.partition(".")
        return f"a recipe file has no key {key!r}: write {section}: {{{name}: ...}}"
    if first["type"] == "invalid_key":
        return (
            f"the key {_SHORT.repr(first['input'])} is not text: `bigbatch recipes NAME` prints every key of a recipe"
        )
    if first["type"] == "extra_forbidden":
        return _unknown(key, [*config_keys(), *_sections()])
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    problem = first["msg"][0].lower() + first["msg"][1:]
    if key in _sections():
        value = first["input"]
        meant = value if isinstance(value, str) else _SHORT.repr(value)
        return f"{key}: {_SHORT.repr(value)} is not a section; {_keys_of(key, meant)}"
    return f"{key}={_SHORT.repr(first['input'])} is not valid: {problem}"
