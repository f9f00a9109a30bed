"""Parses JSON, TOML and YAML, in which nesting that is too deep is one more way to be invalid.

Python's parsers raise RecursionError for it, which a reader of damaged files easily forgets to expect.
"""

import json
import tomllib
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which raises YAMLError for every invalid value."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int):
                str(value)  # Python writes no number of more than 4,300 digits, though it reads hexadecimal ones
            return value
        except (ValueError, LookupError, AttributeError, ArithmeticError):  # PyYAML's, e.g. for the 45th of May
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(None, None, f"this is no valid {kind}", node.start_mark) from None


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: it is not valid JSON.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Return what a TOML text says.

    Raises:
        ValueError: it is not valid TOML.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """Return what a YAML text says, which may come from a stranger: nothing in it is run.

    Raises:
        yaml.YAMLError: it is not valid YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, OverflowError):
        raise yaml.YAMLError("it names a character by a number that none has") from None


def parse_yaml_value(text: str) -> Any:
    """Return what a YAML text on a command line says; one that is no YAML, or that has a comment, stands for itself."""
    try:
        value = parse_yaml(text)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError:
        return text
    has_comment = node is None or text[node.end_mark.index :].strip()
    return text if has_comment else value


def parse_own_yaml(text: str) -> Any:
    """Return what a YAML file of this package says.

    libyaml, where PyYAML has it, is five times as fast, but a text that is nested too deeply would end Python itself.
    """
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
