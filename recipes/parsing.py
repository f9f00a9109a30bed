"""Parses JSON, TOML and YAML, in which nesting that is too deep is one more way to be invalid.

Python's parsers raise RecursionError for it, which a reader of damaged files easily forgets to expect.
"""

import json
import tomllib
from typing import Any

import yaml


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
        return yaml.safe_load(text)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def parse_own_yaml(text: str) -> Any:
    """Return what a YAML file of this package says.

    libyaml, where PyYAML has it, is five times as fast, but a text that is nested too deeply would end Python itself.
    """
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
