"""Self-contained HTML pages: one look for all, figures inside in a light and a dark version."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import jinja2
from PIL import Image

from om2p_data.errors import UserError
from om2p_data.inspect.drawing import DARK, LIGHT, Draw, image
from om2p_data.storage import reason, write_whole

_DISPLAY_SCALE = 0.75  # figures have more pixels than they take on the page: sharp on fine screens, too


@dataclass(frozen=True)
class Picture:
    """A figure for light and for dark screens, PNG in base 64, and its size on the page."""

    caption: str
    light: str
    dark: str
    width: int
    height: int


def picture(caption: str, draw: Draw) -> Picture:
    """A figure for a page."""
    light, dark = (image(draw, theme) for theme in (LIGHT, DARK))
    with Image.open(io.BytesIO(light)) as drawn:
        width, height = (round(_DISPLAY_SCALE * size) for size in drawn.size)
    return Picture(caption, base64.b64encode(light).decode(), base64.b64encode(dark).decode(), width, height)


def render(template: Path, **values: object) -> str:
    """A page from a template that extends `page.html` and may import its macros from `parts.html`."""
    loader = jinja2.FileSystemLoader([template.parent, Path(__file__).parent])
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template(template.name).render(**values)


def write(text: str, path: Path) -> None:
    """Write a page.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error
