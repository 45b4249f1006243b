"""The tables of options in the pages, from the recipes' records: `python docs/options.py` brings them up to date.

A table stands between two comments: `<!-- options: RECIPE... -->` for an algorithm's own keys, a column for each
recipe (`RECIPE@paper` at the paper's scale), or `<!-- options of TABLE -->` for a table that all recipes have.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from om2p_train import config

_PAGES = Path(__file__).parent
_TASK = "a task that no recipe knows"
_TABLE = re.compile(r"(<!-- options(?::| of) ([^>]*?) -->\n).*?(<!-- end of options -->)", re.DOTALL)


def pages() -> Iterator[tuple[Path, str, str]]:
    """Every page with tables of options: its path, its text, and what the text should be."""
    for path in sorted(_PAGES.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if _TABLE.search(text):
            yield path, text, _TABLE.sub(lambda found: f"{found[1]}\n{_table(found[2].split())}\n\n{found[3]}", text)


def _table(names: list[str]) -> str:
    """The rows: key, its value in every recipe, meaning."""
    if len(names) == 1 and names[0] in config.TrainRecipe.__annotations__:
        table, columns = names[0], ["bc@cpu", "bc@paper"]
        heads = ["`--scale cpu`", "`--scale paper`"]
    else:
        table, columns = "options", names
        heads = [f"`{name.replace('@', ' --scale ')}`" for name in names]
    records = [_record(column, table) for column in columns]
    rows = [(f"`[{table}]`", *heads, "meaning"), ("---",) * (len(heads) + 2)]
    for key, field in type(records[0]).model_fields.items():
        assert field.description, f"{type(records[0]).__name__}.{key} has no description"
        values = [_shown(getattr(record, key)) for record in records]
        rows.append((f"`{key}`", *values, field.description + _choices(field.annotation)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _record(column: str, table: str) -> BaseModel:
    name, _, scale = column.partition("@")
    return getattr(config.load(name, _TASK, None, config.Scale(scale or "cpu")), table)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    plain = value.value if isinstance(value, enum.Enum) else value
    if isinstance(plain, tuple):
        return f"`[{', '.join(f'{entry:g}' for entry in plain)}]`"
    return f"`{plain if isinstance(plain, str) else json.dumps(plain)}`"


def _choices(kind: Any) -> str:
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        return ""
    return "; one of " + ", ".join(f"`{choice.value}`" for choice in kind)


if __name__ == "__main__":
    for path, text, wanted in pages():
        if text != wanted:
            path.write_text(wanted, encoding="utf-8")
            print(f"wrote {path}")
