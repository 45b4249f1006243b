"""How far policies keep to the data, as tables, CSV and figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from om2p_data.errors import UserError
from om2p_data.inspect.drawing import LIGHT, Draw, Theme, save_all, styled
from om2p_data.inspect.tables import Table, percent
from om2p_data.storage import reason, write_whole
from om2p_train.covered import Report
from om2p_train.reporting import FIGURE_TYPES, figures
from om2p_train.reporting.tables import markdown, short
from om2p_train.surroundings import SAMPLES, Coverage, Teams

_UNIFORM, _DATA, _TEAMS = "uniform actions", "data beside themselves", "behaviour teams again"
_TICKS = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0, 4.0)
_SHOWN = 4  # observations in a figure of actions
_SIDE = 1.7  # inches of one of its panels
_MARKS = "xP*^"  # of teams
_EDGE = 1.1
_LEFT = -0.003  # of an axis of distances, so that 0 is within


def text(reports: Sequence[Report], left_out: Sequence[str] = ()) -> str:
    """What the terminal shows, in Markdown: the tables of every data set, what they mean, and what was left out."""
    tables = [
        markdown(table) for report in reports for table in (distances(report), modes(report)) if table is not None
    ]
    lines = "\n".join(f"- {line}" for line in (*_meaning(reports[0]), *left_out))
    return "\n\n".join([*tables, lines])


def write(reports: Sequence[Report], folder: Path, left_out: Sequence[str] = ()) -> list[Path]:
    """Write coverage.md, coverage.csv and the figures as PNG and PDF.

    Returns:
        The paths written.

    Raises:
        UserError: the folder cannot be written.
    """
    drawn = save_all(plan(reports), folder, file_types=FIGURE_TYPES)
    contents = {"coverage.md": text(reports, left_out) + "\n", "coverage.csv": comma_separated(reports)}
    for name, content in contents.items():
        try:
            write_whole(folder / name, lambda partial, content=content: partial.write_text(content, encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot write {folder / name}: {reason(error)}") from error
    return [*(folder / name for name in contents), *drawn]


def distances(report: Report) -> Table:
    """Distance to the data and spread, mean ± sample standard deviation over seeds."""
    rows = []
    for name, found in _sources(report):
        own = [one.spread for one in found if one.spread is not None]
        rows.append(
            (
                name,
                _spread([one.distance for one in found]),
                _fixed(np.mean([one.error for one in found])),
                _spread(own) if own else "",
                _spread([one.spread_nearby for one in found]),
                str(len(found)) if name not in (_UNIFORM, _DATA, _TEAMS) else "",
            )
        )
    header = ("policy", "distance", "error", "spread", "nearby", "seeds")
    return Table(f"{report.dataset}: how far policies keep to the data", header, tuple(rows))


def modes(report: Report) -> Table | None:
    """Where actions lie where the behaviour teams tell them apart; None where that is not known."""
    teams, learned = report.around.teams, report.data.modes
    if teams is None or learned is None:
        return None
    rows = []
    for name, found in _sources(report):
        own = [one.modes for one in found if one.modes is not None]
        near = zip(*(one.shares for one in own), strict=True)
        shares = [_percents(list(share)) for share in near] + [_percents([one.elsewhere for one in own])]
        rows.append(("data" if name == _DATA else name, *shares, _spread([one.kept for one in own])))
    note = f"at {int(teams.telling.sum()):,} pairs of an agent and an observation"
    if len(teams.names) > 1:
        note += (
            f", where the teams' actions are more than two radii apart ({percent(float(teams.apart.mean()))} of all "
            "pairs) and two teams took a tenth of the data nearby"
        )
    header = ("policy", *(f"near {name}" for name in teams.names), "elsewhere", "modes")
    return Table(f"{report.dataset}: modes of the behaviour", header, tuple(rows), note)


def comma_separated(reports: Sequence[Report]) -> str:
    """Every seed of every method, and what it stands beside, with full digits."""
    names = list(dict.fromkeys(name for one in reports if one.around.teams for name in one.around.teams.names))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = ["dataset", "dataset_hash", "policy", "seed", "commit", "observations", "neighbours"]
    header += ["distance", "distance_error", "spread", "spread_nearby", "modes_observations", "modes", "elsewhere"]
    writer.writerow([*header, *(f"near_{name}" for name in names)])
    for report in reports:
        around, teams = report.around, report.around.teams
        place = (report.dataset, around.dataset.metadata["content_hash"])
        trained = {
            one.method.label: tuple(zip(one.method.seeds, one.method.commits, strict=True)) for one in report.methods
        }
        for name, found in _sources(report):
            for (seed, code), one in zip(trained.get(name, (("", ""),)), found, strict=True):
                cells = [*place, name, seed, code, *around.actions.shape[1:3]]
                cells += [one.distance, one.error, "" if one.spread is None else one.spread, one.spread_nearby]
                if teams is None or one.modes is None:
                    cells += [""] * (3 + len(names))
                else:
                    shares = dict(zip(teams.names, one.modes.shares, strict=True))
                    cells += [int(teams.telling.sum()), one.modes.kept, one.modes.elsewhere]
                    cells += [shares.get(name, "") for name in names]
                writer.writerow(cells)
    return out.getvalue()


def plan(reports: Sequence[Report]) -> dict[str, Draw]:
    """All figures, by file name (without ending)."""
    drawn: dict[str, Draw] = {"distance": partial(distance, reports)}
    for report in reports:
        if _flat_agents(report):
            drawn[f"actions-{short(report.dataset).replace(' ', '-').replace('/', '-')}"] = partial(actions, report)
    return drawn


def distance(reports: Sequence[Report], theme: Theme = LIGHT) -> Figure:
    """Distance to the data, one panel a data set: every seed as a dot, the mean as a bar."""
    with styled(theme):
        labels = list(dict.fromkeys(one.method.label for report in reports for one in report.methods))
        figure, panels = figures.split(len(reports), height=1.0 + 0.28 * len(labels), same_rows=True)
        colors = figures.colors_of(labels, theme)
        for report, axes in zip(reports, panels, strict=True):
            for one in report.methods:
                values, row = np.array([found.distance for found in one.by_seed]), labels.index(one.method.label)
                color = colors[one.method.label]
                axes.plot(values, np.full(len(values), row), "o", color=color, ms=4, alpha=0.5, mew=0)
                axes.plot([values.mean()], [row], "|", color=color, ms=14, mew=2)
            axes.axvline(report.data.distance, color=theme.ink, ls="--", lw=1, label=_DATA)
            axes.axvline(report.uniform.distance, color=theme.ink, ls=":", lw=1, alpha=0.6, label=_UNIFORM)
            figures.rows(axes, labels)
            # By its root: the floor and a distance a hundred times as large are both to be seen.
            axes.set_xscale("function", functions=(_root, _square))
            found = [report.data, report.uniform, *(seed for one in report.methods for seed in one.by_seed)]
            least, most = (pick(one.distance for one in found) for pick in (min, max))
            ticks = [tick for tick in _TICKS if tick <= most]
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set_title(short(report.dataset), fontsize=10)
            axes.set_xlabel("energy distance to the data nearby")
            axes.set_xlim(min(_LEFT, 1.5 * least), 1.1 * most)
        figures.legend(figure, panels)
        return figure


def actions(report: Report, theme: Theme = LIGHT) -> Figure:
    """Actions of two components at a few observations, one a row: of the data nearby, of the teams that made them, and
    in a column for each method those of its first seed.
    """
    with styled(theme):
        around, shown = report.around, _telling(report)
        size = (_SIDE * len(report.methods) + 0.6, _SIDE * len(shown) + 0.9)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(shown), len(report.methods), squeeze=False, sharex=True, sharey=True)
        colors = figures.colors_of([one.method.label for one in report.methods], theme)
        for (agent, anchor), line in zip(shown, panels, strict=True):
            for one, axes in zip(report.methods, line, strict=True):
                data, own = around.actions[agent, anchor], one.actions[agent, anchor]
                axes.plot(*data[:, :2].T, "o", color=theme.ink, alpha=0.25, ms=6, mew=0, label="data nearby")
                axes.plot(*own[:, :2].T, "o", color=colors[one.method.label], alpha=0.7, ms=3, mew=0)
                if around.teams is not None:
                    _mark(axes, around.teams, agent, anchor, theme)
                axes.set(xlim=(-_EDGE, _EDGE), ylim=(-_EDGE, _EDGE), aspect="equal")
                axes.set(xticks=(-1, 0, 1), yticks=(-1, 0, 1))
            line[0].set_ylabel(around.dataset.environment.spec.agents[agent])
        for one, axes in zip(report.methods, panels[0], strict=True):
            axes.set_title(one.method.label, fontsize=9, color=colors[one.method.label], wrap=True)
        figures.legend(figure, list(panels.flat))
        return figure


def _meaning(report: Report) -> list[str]:
    """What the columns mean."""
    count, nearest = report.around.actions.shape[1:3]
    return [
        f"distance: energy distance between a policy's actions and the data's at the {nearest} observations nearest to "
        f"each of {count:,}, for each agent in the box of its actions; 0 is the same distribution, and the data beside "
        "themselves show what chance makes of that",
        "error: of the distance, its standard error over observations; ±: standard deviation over seeds",
        f"spread: root mean square deviation of {SAMPLES} actions at one observation (data: of their teams'); nearby: "
        f"of one action at each of the {nearest}, which differ from one observation to the next as well",
        "near: share of the actions within the radius of a team's that holds 99.73% of its noise (chi-square); data: "
        "their own actions at the same observations",
        "modes: teams near which lie at least half as many actions as of the data nearby, among those that took a "
        "tenth of these",
    ]


def _sources(report: Report) -> Iterator[tuple[str, tuple[Coverage, ...]]]:
    """Names of all sources of actions, with what was measured of them, by seed."""
    yield _UNIFORM, (report.uniform,)
    yield _DATA, (report.data,)
    if report.teams is not None:
        yield _TEAMS, (report.teams,)
    for one in report.methods:
        yield one.method.label, one.by_seed


def _flat_agents(report: Report) -> list[int]:
    """Agents whose actions can be drawn: of two continuous components."""
    spec = report.around.dataset.environment.spec
    return [index for index, size in enumerate(spec.act_dims) if size == 2 and not spec.discrete[index]]


def _mark(axes: Axes, teams: Teams, agent: int, anchor: int, theme: Theme) -> None:
    """What each team would do, and how far its noise reaches."""
    for name, meant, mark in zip(teams.names, teams.here[:, agent, anchor, :2], _MARKS, strict=False):
        axes.plot(*meant, mark, color=theme.ink, ms=6, mew=1.2, label=f"{name} team (circle: its noise)")
        axes.add_patch(Circle(tuple(meant), teams.radius[agent, 0], fill=False, color=theme.ink, lw=0.8, alpha=0.6))


def _telling(report: Report) -> list[tuple[int, int]]:
    """Agents and anchors, of an anchor one agent, where the second team has most of the data nearby.

    Where that is not known, or there is one team only: where the data nearby are most spread.
    """
    around, teams, agents = report.around, report.around.teams, np.array(_flat_agents(report))
    if teams is not None and len(teams.names) > 1 and teams.telling.any():
        value = np.where(teams.telling, np.sort(teams.shares, 0)[-2], -1.0)[agents]
    else:
        value = around.actions.var(2).sum(-1)[agents]
    anchors = np.argsort(-value.max(0), kind="stable")[:_SHOWN]
    return [(int(agents[value[:, anchor].argmax()]), int(anchor)) for anchor in anchors if value[:, anchor].max() >= 0]


def _root(values: np.ndarray) -> np.ndarray:
    """The square root, on both sides of 0."""
    return np.sign(values) * np.sqrt(np.abs(values))


def _square(values: np.ndarray) -> np.ndarray:
    """Its inverse."""
    return np.sign(values) * values**2


def _spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation; of a single value, itself."""
    return _fixed(np.mean(values)) + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def _fixed(value: float | np.floating) -> str:
    """Three digits after the point, and no negative zero."""
    return f"{round(float(value), 3) + 0.0:.3f}"


def _percents(shares: Sequence[float]) -> str:
    """The same of shares."""
    deviation = f" ± {100 * np.std(shares, ddof=1):.1f}%" if len(shares) > 1 else ""
    return percent(float(np.mean(shares))) + deviation
