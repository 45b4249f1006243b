"""Data sets as one HTML page: a card of each, and a comparison of several."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
from PIL import Image

from om2p_data.errors import UserError
from om2p_data.inspect import figures, tables
from om2p_data.inspect.figures import DARK, LIGHT, Draw
from om2p_data.inspect.statistics import Description, Study
from om2p_data.inspect.tables import Table
from om2p_data.storage import reason, write_whole

_DISPLAY_SCALE = 0.75  # figures have more pixels than they take on the page: sharp on fine screens, too

_LOADING = """\
import minari

dataset = minari.load_dataset({id!r})
episode = dataset[0]
episode.observations[{agent!r}]  # (T + 1, {obs_dim})
episode.actions[{agent!r}]  # {action}
episode.rewards  # (T,), of the team"""


@dataclass(frozen=True)
class Picture:
    """A figure for light and for dark screens, PNG in base 64, and its size on the page."""

    caption: str
    light: str
    dark: str
    width: int
    height: int


@dataclass(frozen=True)
class Part:
    """A table, and the figures that show the same."""

    table: Table
    figures: tuple[Picture, ...]


@dataclass(frozen=True)
class Card:
    """What the page says about one data set."""

    id: str
    summary: str
    tiles: tuple[tuple[str, str], ...]
    parts: tuple[Part, ...]
    loading: str
    command: str | None
    collection: str


def write(found: Sequence[Study], path: Path, verified: Sequence[bool | None]) -> None:
    """Write the report.

    Args:
        found: the data sets.
        path: the HTML file; it is self-contained.
        verified: for each data set whether its data have the stated hash, None where nobody looked.

    Raises:
        UserError: the file cannot be written.
    """
    text = render(found, verified)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error


def render(found: Sequence[Study], verified: Sequence[bool | None]) -> str:
    """The report as HTML."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    several = len(found) > 1
    cards = [_card(one, state, alone=not several) for one, state in zip(found, verified, strict=True)]
    environments = list(dict.fromkeys(one.description.environment for one in found))
    return page.get_template("report.html").render(
        title=f"Data sets of {', '.join(environments)}" if several else cards[0].id,
        cards=cards,
        comparison=tables.comparison([one.description for one in found]) if several else None,
        figures=_compared(found, environments) if several else [],
    )


def _compared(found: Sequence[Study], environments: Sequence[str]) -> list[Picture]:
    pictures = []
    for environment in environments:
        same = [one for one in found if one.description.environment == environment]
        pictures.append(_picture(f"Team returns, {environment}", lambda theme, same=same: figures.returns(same, theme)))
        caption = f"Team returns in the order of collection, {environment}"
        pictures.append(_picture(caption, lambda theme, same=same: figures.order(same, theme)))
    return pictures


def _card(one: Study, verified: bool | None, *, alone: bool) -> Card:
    described = one.description
    pictures: dict[str, list[Picture]] = {
        "Coverage": [_picture("Where the states are", lambda theme: figures.coverage(one, theme))],
        "Agents": [_picture("How often actions take which value", lambda theme: figures.actions(one, theme))],
    }
    if alone:
        pictures["Returns"] = [
            _picture("Team returns", lambda theme: figures.returns([one], theme)),
            _picture("Team returns in the order of collection", lambda theme: figures.order([one], theme)),
        ]
    if len(described.sources) > 1:
        pictures["Behaviour policies"] = [
            _picture("Team returns by behaviour policy", lambda theme: figures.sources(one, theme))
        ]
    first, *others = tables.card(described, verified)
    parts = [Part(replace(first, title="At a glance"), ())]
    parts += [Part(table, tuple(pictures.get(table.title, ()))) for table in others]
    collection = json.dumps(described.collection, indent=1) if described.collection else ""
    return Card(
        described.id,
        described.summary,
        _tiles(described),
        tuple(parts),
        _loading(one),
        tables.command(described),
        collection,
    )


def _tiles(one: Description) -> tuple[tuple[str, str], ...]:
    tiles = [
        ("transitions", f"{one.transitions:,}"),
        ("episodes", f"{one.episodes:,}"),
        ("team return", tables.spread(one.team_return["mean"], one.team_return["std"])),
        ("published mean", tables.number(one.published)),
        ("score", tables.number(one.score(one.team_return["mean"]))),
        ("agents", str(len(one.agents))),
        ("on disk", f"{one.megabytes:,.1f} MB"),
    ]
    return tuple((name, value) for name, value in tiles if value)


def _loading(one: Study) -> str:
    agent = one.description.agents[0]
    action = "(T,), which choice" if agent.discrete else f"(T, {len(agent.actions)})"
    return _LOADING.format(id=one.description.id, agent=agent.name, obs_dim=agent.obs_dim, action=action)


def _picture(caption: str, draw: Draw) -> Picture:
    light, dark = (figures.png(draw, theme) for theme in (LIGHT, DARK))
    with Image.open(io.BytesIO(light)) as image:
        width, height = (round(_DISPLAY_SCALE * size) for size in image.size)
    return Picture(caption, base64.b64encode(light).decode(), base64.b64encode(dark).decode(), width, height)
