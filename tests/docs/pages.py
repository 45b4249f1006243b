"""The pages of the documentation: their blocks of code, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = "README.md"
PAGES = [README, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^( *)```(.*?)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w-]+\.(?:py|toml))\n")
_SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_LIST = re.compile(r"^(?:[-*]|\d+\.) .*\n(?:(?: +.*)?\n)*", re.MULTILINE)
_INDENTED = re.compile(r"^(?: {4}|\t)\S.*", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: what stands behind the fence.
        line: of the fence, from 1 on.
    """

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """Name of the file whose contents it is, which its first line says; None for other blocks."""
        found = _FILE.match(self.text)
        return found.group(1) if found else None

    @property
    def commands(self) -> list[list[str]]:
        """The words of every command of a bash block; comments are left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def read(page: str) -> str:
    """Text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a text."""
    return [
        Block(found[2].strip(), found[3], text.count("\n", 0, found.start()) + 1) for found in _FENCE.finditer(text)
    ]


def file_in(page: str, name: str) -> str:
    """Contents of the file of that name that a page shows."""
    (found,) = [block.text for block in blocks(read(page)) if block.file == name]
    return found


def prose(text: str) -> str:
    """What stands outside of fenced blocks."""
    return _FENCE.sub("", text)


def indented(text: str) -> list[str]:
    """Lines that are code by their indentation alone (paragraphs of a list are none)."""
    return _INDENTED.findall(_LIST.sub("", prose(text)))


def spans(text: str) -> list[str]:
    """Code within the prose."""
    return [" ".join(found.split()) for found in _SPAN.findall(prose(text))]
