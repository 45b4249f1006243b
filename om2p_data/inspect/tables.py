"""Descriptions as tables of text, which the terminal page and the HTML report both show."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from om2p_data.inspect.statistics import AgentFigures, Component, Description
from om2p_data.inspect.views import CELLS

_MOST_COMPONENTS = 48  # rows of the table of action components; larger teams have it in the JSON only
_MOST_SOURCES = 24  # rows of the table of behaviour policies; the others are in the JSON only
_LONG = {"recipe", "teams"}  # of `collection`: too much for a page, in the JSON


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; an empty header makes it a list of names and values.

    Attributes:
        title: what it is about.
        header: names of the columns.
        rows: cells, as many as the header has.
        note: what the columns mean, one paragraph.
        text_columns: how many of the first columns are words; the others are numbers.

    Columns in which every cell is empty are left out.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    text_columns: int = 1

    def __post_init__(self) -> None:
        kept = [index for index, column in enumerate(zip(*self.rows, strict=True)) if any(column)]
        object.__setattr__(self, "header", tuple(self.header[index] for index in kept if self.header))
        object.__setattr__(self, "rows", tuple(tuple(row[index] for index in kept) for row in self.rows))


def comparison(found: Sequence[Description]) -> Table:
    """Data sets beside each other, one a row."""
    rows = []
    for one in found:
        planes = one.coverage.planes
        rows.append(
            (
                one.id,
                f"{one.transitions:,}",
                f"{one.episodes:,}",
                number(one.episode_length["mean"]),
                spread(one.team_return["mean"], one.team_return["std"]),
                number(one.published),
                number(one.score(one.team_return["mean"])),
                percent(_mean(agent.entropy for agent in one.agents)),
                percent(_mean(plane.visited for plane in planes)),
                percent(_mean(plane.evenness for plane in planes)),
                number(one.coverage.effective_dimension),
                f"{one.megabytes:.1f}",
            )
        )
    header = ("data set", "transitions", "episodes", "length", "return", "published", "score", "action entropy")
    header += ("visited", "evenly", "dimension", "MB")
    return Table("Comparison", header, tuple(rows), "means over agents and planes; the columns are explained below")


def card(one: Description, verified: bool | None = None) -> list[Table]:
    """Everything about one data set. `verified`: whether its data have the stated hash, None where nobody looked."""
    found = [_facts(one, verified), _returns(one), _agents(one)]
    if sum(len(agent.actions) for agent in one.agents) <= _MOST_COMPONENTS:
        found += _actions(one)
    return [*found, _sources(one), _coverage(one), _provenance(one)]


def text(table: Table, width: int = 100) -> str:
    """A table for the terminal; its note is wrapped at `width` columns, the rows are as wide as they are."""
    lines = [row for row in (table.header, *table.rows) if row]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    out = [table.title]
    for row in lines:
        cells = [
            cell.ljust(widths[index]) if index < table.text_columns else cell.rjust(widths[index])
            for index, cell in enumerate(row)
        ]
        out.append("  " + "  ".join(cells).rstrip())
    if table.note:
        out.append(textwrap.fill(f"({table.note})", width, initial_indent="  ", subsequent_indent="   "))
    return "\n".join(out)


def number(value: float | None) -> str:
    """About four significant digits; nothing for None."""
    if value is None:
        return ""
    size = abs(value)
    decimals = 0 if size >= 10_000 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{decimals}f}" if round(value, decimals) else "0"


def spread(mean: float | None, deviation: float | None) -> str:
    """Mean ± standard deviation with the digits of the larger."""
    if mean is None or deviation is None:
        return ""
    size = max(abs(mean), deviation)
    decimals = 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{mean:,.{decimals}f} ± {deviation:,.{decimals}f}"


def percent(share: float | None) -> str:
    """A share as percentage with one digit after the point; nothing for None."""
    return "" if share is None else f"{100 * share:.1f}%"


def provenance(one: Description) -> Iterator[tuple[str, str]]:
    """What the metadata say about how the data came about, as names and values."""
    for team in (one.collection.get("teams") or {}).values():
        yield f"{team.get('level', 'behaviour')} team", _team(team)
    yield from _flat({key: value for key, value in one.collection.items() if key not in _LONG})
    if one.minari_version is not None:
        yield "minari", one.minari_version


def command(one: Description) -> str | None:
    """The command that makes a tier as this one was made, None where the data came about in another way."""
    asked = one.collection
    if "transitions_requested" not in asked or "mixing" in asked:
        return None
    words = ["om2p-data generate --env", one.environment, "--tier", one.tier]
    for option, key in (("--transitions", "transitions_requested"), ("--mix", "expert_share_requested")):
        if asked.get(key) is not None:
            words += [option, str(asked[key])]
    return " ".join([*words, "--seed", str(asked.get("seed", 0))])


def _facts(one: Description, verified: bool | None) -> Table:
    status = {None: "", True: " (verified)", False: " (WRONG: the data have another)"}[verified]
    first, seen = one.agents[0], one.coverage
    rows = [
        ("about", one.summary),
        ("environment", one.environment),
        ("tier", one.tier),
        ("agents", f"{len(one.agents)}: {_listed([agent.name for agent in one.agents])}"),
        ("size", f"{one.transitions:,} transitions in {one.episodes:,} episodes"),
        ("on disk", f"{one.megabytes:.1f} MB, of which the HDF5 file {one.hdf5_megabytes:.1f} MB"),
        ("episodes end", _ends(one.terminated)),
        (
            "states vary in",
            f"about {number(seen.effective_dimension)} of {seen.state_dim} directions (participation ratio)",
        ),
        ("content hash", f"{one.content_hash}{status}" if one.content_hash else "none stated"),
    ]
    kinds = {(agent.obs_dim, len(agent.actions), agent.discrete) for agent in one.agents}
    if len(kinds) == 1:
        one_or_many = "" if len(first.actions) == 1 else "s"
        what = "choices" if first.discrete else f"action component{one_or_many}"
        rows.insert(4, ("each sees, does", f"{first.obs_dim} numbers, {len(first.actions)} {what}"))
    return Table(one.id, (), tuple(rows), text_columns=2)


def _returns(one: Description) -> Table:
    quantiles = tuple(one.team_return["quantiles"])
    header = ("", "mean ± std", "min", *(_quantile_name(q) for q in quantiles), "max", "published mean")

    def row(name: str, figures: Mapping[str, Any], published: float | None) -> tuple[str, ...]:
        cells = (figures["min"], *figures["quantiles"].values(), figures["max"], published)
        return (name, spread(figures["mean"], figures["std"]), *map(number, cells))

    rows = [row("team return", one.team_return, one.published), row("episode length", one.episode_length, None)]
    note = ""
    if one.score(0.0) is not None:
        rows.insert(1, row("score", _scored(one), None if one.published is None else one.score(one.published)))
        note = f"score: 0 is a return of {number(one.reference_random)}, 100 one of {number(one.reference_expert)}"
    return Table("Returns", header, tuple(rows), note)


def _agents(one: Description) -> Table:
    header = ("agent", "return", "sees", "constant", "observed from", "to", "entropy", "at a bound", "present")
    everywhere = all(agent.present == 1.0 for agent in one.agents)
    rows = tuple(
        (
            agent.name,
            spread(agent.return_mean, agent.return_std),
            str(agent.obs_dim),
            str(agent.obs_constant),
            number(agent.obs_low),
            number(agent.obs_high),
            percent(agent.entropy),
            percent(_bound_share(agent)),
            "" if everywhere else percent(agent.present),
        )
        for agent in one.agents
    )
    note = (
        "sees: numbers in its observation, of which so many are constant; entropy: of its actions, 0% always the same, "
        "100% uniform; at a bound: share of action components at a bound of the action space"
    )
    if not everywhere:
        note += "; present: share of the team's steps"
    return Table("Agents", header, rows, note)


def _actions(one: Description) -> Iterator[Table]:
    moving = [agent for agent in one.agents if not agent.discrete]
    if moving:
        header = ("agent", "component", "mean ± std", "min", "max", "at a bound", "entropy")
        rows = [_component_row(agent, a, part) for agent in moving for a, part in enumerate(agent.actions)]
        yield Table("Actions", header, tuple(rows), text_columns=2)
    choosing = [agent for agent in one.agents if agent.discrete]
    if choosing:
        rows = [
            (agent.name, "  ".join(f"{a}: {percent(part.mean)}" for a, part in enumerate(agent.actions)))
            for agent in choosing
        ]
        yield Table("Choices", ("agent", "share of each choice"), tuple(rows), text_columns=2)


def _component_row(agent: AgentFigures, index: int, part: Component) -> tuple[str, ...]:
    extremes = (number(part.low), number(part.high))
    return (
        agent.name,
        str(index),
        spread(part.mean, part.std),
        *extremes,
        percent(part.at_bound),
        percent(part.entropy),
    )


def _sources(one: Description) -> Table:
    header = ("policy", "algorithm", "step", "seed", "hash", "transitions", "share", "episodes", "return", "score")
    rows = [
        (
            source.name,
            source.algorithm,
            f"{source.step:,}",
            str(source.seed),
            source.hash[:12],
            f"{source.transitions:,}",
            percent(source.share),
            f"{source.episodes:,}",
            spread(source.return_mean, source.return_std),
            number(None if source.return_mean is None else one.score(source.return_mean)),
        )
        for source in one.sources[:_MOST_SOURCES]
    ]
    taken = "; ".join(f"{part.get('id')} ({part.get('episodes'):,} episodes)" for part in one.tier_sources)
    note = "step: updates of its training; hash: of its weights"
    if len(one.sources) > _MOST_SOURCES:
        note = f"the first {_MOST_SOURCES} of {len(one.sources)} policies; {note}"
    return Table("Behaviour policies", header, tuple(rows), f"{note}; taken from {taken}" if taken else note, 2)


def _coverage(one: Description) -> Table:
    seen = one.coverage
    rows = tuple(
        (plane.name, percent(plane.visited), percent(plane.evenness), percent(plane.outside)) for plane in seen.planes
    )
    note = (
        f"{seen.meaning}; {seen.sampled:,} states on {CELLS} x {CELLS} cells. visited: share of the cells with a state "
        "in them; evenly: exp(entropy over the cells) / cells, 100% if all are visited alike; outside: share of the "
        "states beyond the bounds"
    )
    return Table("Coverage", ("plane", "visited", "evenly", "outside"), rows, note)


def _provenance(one: Description) -> Table:
    rows = tuple(provenance(one)) or (("", "nothing is stated"),)
    made = command(one)
    return Table("Provenance", (), (*rows, ("made as by", made)) if made else rows, text_columns=2)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if key == "packages" and isinstance(value, Mapping):
            yield name, ", ".join(f"{package} {version}" for package, version in value.items())
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{name} ")
        elif isinstance(value, list):
            if value:
                yield name, "; ".join(map(_plain, value))
        elif value is not None:
            yield name, str(value)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return str(value)


def _team(team: Mapping[str, Any]) -> str:
    said = [str(team.get("algorithm", "unknown algorithm"))]
    said += [f"{team[key]:,} {name}" for key, name in (("updates", "updates"), ("env_steps", "steps")) if key in team]
    said += [f"seed {team['seed']}"] if "seed" in team else []
    if "return_mean" in team and "return_std" in team:
        said.append(
            f"return {spread(team['return_mean'], team['return_std'])} over {team.get('episodes', 0):,} episodes"
        )
    return ", ".join(said)


def _scored(one: Description) -> dict[str, Any]:
    """The figures of the team return as scores."""
    assert one.reference_random is not None
    assert one.reference_expert is not None
    scale = 100.0 / (one.reference_expert - one.reference_random)
    figures = one.team_return
    scored = {key: one.score(figures[key]) for key in ("mean", "min", "max")}
    quantiles = {q: one.score(value) for q, value in figures["quantiles"].items()}
    return {**scored, "std": abs(scale) * figures["std"], "quantiles": quantiles}


def _ends(terminated: float) -> str:
    if terminated in (0.0, 1.0):
        return "all by themselves" if terminated else "all at a time limit"
    return f"{percent(terminated)} by themselves, the others at a time limit"


def _quantile_name(share: str) -> str:
    return "median" if float(share) == 0.5 else f"{100 * float(share):.0f}%"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:7])}, ... {names[-1]}"


def _bound_share(agent: AgentFigures) -> float | None:
    shares = [part.at_bound for part in agent.actions if part.at_bound is not None]
    return _mean(shares) if shares else None


def _mean(values: Iterator[float] | Sequence[float]) -> float:
    return math.fsum(found := list(values)) / len(found)
