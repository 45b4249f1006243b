"""Data sets as one HTML page: a card of each, and a comparison of several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from om2p_data.inspect import figures, page, tables
from om2p_data.inspect.page import Picture, picture
from om2p_data.inspect.statistics import Description, Study
from om2p_data.inspect.tables import Table

_LOADING = """\
import minari

dataset = minari.load_dataset({id!r})
episode = dataset[0]
episode.observations[{agent!r}]  # (T + 1, {obs_dim})
episode.actions[{agent!r}]  # {action}
episode.rewards  # (T,), of the team"""


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
    page.write(render(found, verified), path)


def render(found: Sequence[Study], verified: Sequence[bool | None]) -> str:
    """The report as HTML."""
    several = len(found) > 1
    cards = [_card(one, state, alone=not several) for one, state in zip(found, verified, strict=True)]
    environments = list(dict.fromkeys(one.description.environment for one in found))
    return page.render(
        Path(__file__).with_name("report.html"),
        title=f"Data sets of {', '.join(environments)}" if several else cards[0].id,
        cards=cards,
        comparison=tables.comparison([one.description for one in found]) if several else None,
        figures=_compared(found, environments) if several else [],
    )


def _compared(found: Sequence[Study], environments: Sequence[str]) -> list[Picture]:
    pictures = []
    for environment in environments:
        same = [one for one in found if one.description.environment == environment]
        pictures.append(picture(f"Team returns, {environment}", lambda theme, same=same: figures.returns(same, theme)))
        caption = f"Team returns in the order of collection, {environment}"
        pictures.append(picture(caption, lambda theme, same=same: figures.order(same, theme)))
    return pictures


def _card(one: Study, verified: bool | None, *, alone: bool) -> Card:
    described = one.description
    pictures: dict[str, list[Picture]] = {
        "Coverage": [picture("Where the states are", lambda theme: figures.coverage(one, theme))],
        "Agents": [picture("How often actions take which value", lambda theme: figures.actions(one, theme))],
    }
    if alone:
        pictures["Returns"] = [
            picture("Team returns", lambda theme: figures.returns([one], theme)),
            picture("Team returns in the order of collection", lambda theme: figures.order([one], theme)),
        ]
    if len(described.sources) > 1:
        pictures["Behaviour policies"] = [
            picture("Team returns by behaviour policy", lambda theme: figures.sources(one, theme))
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
