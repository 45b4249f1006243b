"""Recipes: typed, frozen records filled from one TOML file, with sections and command-line overrides on top."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from om2p_data.errors import UserError, unknown


class Record(BaseModel):
    """Base of all recipe records: frozen, finite, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


R = TypeVar("R", bound=Record)


def bundled(folder: str) -> list[str]:
    """Names of the recipes that ship with the package in `folder` ("data" or "train")."""
    entries = _bundle().joinpath(folder).iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml"))


def bundled_text(*path: str) -> str:
    """Contents of a file that ships with the package beside the recipes."""
    return _bundle().joinpath(*path).read_text(encoding="utf-8")


def read(source: str | Path, folder: str) -> tuple[dict[str, Any], str]:
    """Parse a recipe.

    Args:
        source: path of a TOML file, or the name of a bundled recipe.
        folder: where bundled recipes of this kind live ("data" or "train").

    Returns:
        The parsed tables and a name for error messages.

    Raises:
        UserError: no such recipe, it cannot be read, or it is not TOML.
    """
    path = Path(source)
    if path.suffix == ".toml":
        if not path.is_file():
            raise UserError(f"recipe file {path} does not exist; bundled recipes: {', '.join(bundled(folder))}")
        try:
            text, label = path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"recipe file {path} cannot be read: {error}") from error
    else:
        if str(source) not in bundled(folder):
            raise unknown("recipe", str(source), bundled(folder))
        text = bundled_text(folder, f"{source}.toml")
        label = f"recipe {source}"
    try:
        return tomllib.loads(text), label
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{label} is not valid TOML: {error}") from error


def merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """`layer` over `base`; tables are merged key by key."""
    merged = dict(base)
    for key, value in layer.items():
        current = merged.get(key)
        merged[key] = merge(current, value) if isinstance(value, Mapping) and isinstance(current, Mapping) else value
    return merged


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """`["options.eta=0.5", ...]` -> nested tables. Values are TOML; what is not TOML is taken as a string.

    Raises:
        UserError: a setting without "=".
    """
    tables: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set takes key=value (e.g. --set table.key=0.5), not {setting!r}")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *path, last = key.strip().split(".")
        nested: dict[str, Any] = {last: value}
        for part in reversed(path):
            nested = {part: nested}
        tables = merge(tables, nested)
    return tables


def fill(model: type[R], values: Mapping[str, Any], label: str, prefix: str = "") -> R:
    """A record of `model` from `values`.

    Args:
        model: the record's class.
        values: its keys.
        label: the recipe's name, for messages.
        prefix: table in which the keys stand, for messages.

    Raises:
        UserError: unknown key (with the nearest valid ones), wrong type or impossible value; the first is named.
    """
    try:
        # JSON is what TOML's types map to one to one; strict, so that "64" and true are no numbers.
        return model.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([*([prefix] if prefix else []), *(str(part) for part in first["loc"])])
        if first["type"] == "extra_forbidden":
            raise UserError(f"{label}: {unknown('key', key, _keys(model, prefix))}") from None
        if first["type"] == "missing":
            raise UserError(f"{label}: key {key!r} is missing") from None
        found = "" if isinstance(first["input"], Mapping) else f" = {first['input']!r}"  # a table fills the screen
        raise UserError(f"{label}: {key}{found} is wrong: {first['msg'].removeprefix('Value error, ')}") from None


def _bundle() -> Traversable:
    return resources.files("om2p_recipes")


def _keys(model: type[BaseModel], prefix: str) -> list[str]:
    keys: list[str] = []
    for name, field in model.model_fields.items():
        path = f"{prefix}.{name}" if prefix else name
        choices = (field.annotation, *get_args(field.annotation))  # a table, or one that may be left out
        tables = [choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel)]
        keys += [key for table in tables for key in _keys(table, path)] or [path]
    return keys
