"""Figures of data sets: returns, order of collection, actions, coverage, sources."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from om2p_data.inspect.drawing import LIGHT, Draw, Theme, cycle, styled
from om2p_data.inspect.statistics import Study, action_bounds
from om2p_data.inspect.tables import number, percent, spread
from om2p_data.inspect.views import Plane

_DPI = 130
_BINS = 48
_MOST_PANELS = 24
_MOST_SOURCES = 8
_RUG_UNTIL = 60  # episodes: so few are also marked one by one
_MOST_DOTS = 4_000  # episodes drawn as dots


def returns(found: Sequence[Study], theme: Theme = LIGHT) -> Figure:
    """Team returns of data sets of one environment as histograms, published means as dashed lines."""
    with styled(theme):
        figure = Figure(figsize=(8, 4.8), layout="constrained")
        axes = figure.add_subplot()
        values = [one.data.episodes.team_returns for one in found]
        edges = _edges(np.concatenate(values))
        for one, own, color in zip(found, values, cycle(theme, len(found)), strict=True):
            description = one.description
            label = f"{_short(one)}: {spread(float(own.mean()), float(own.std()))}"
            _histogram(axes, own, edges, color, label)
            if description.published is not None:
                published = f"published {description.tier}: {number(description.published)}"
                axes.axvline(description.published, color=color, ls="--", lw=1.5, label=published)
        axes.set(xlabel="team return of an episode", ylabel="share of episodes", title=found[0].description.environment)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        first = found[0].description
        if first.score(0.0) is not None:
            low, high = first.reference_random, first.reference_expert
            assert low is not None
            assert high is not None
            span = high - low
            top = axes.secondary_xaxis(
                "top",
                functions=(lambda x: 100 * (np.asarray(x) - low) / span, lambda x: low + np.asarray(x) * span / 100),
            )
            top.set_xlabel("score (0: random, 100: expert reference)", fontsize=9)
        figure.legend(loc="outside lower center", ncols=2)
        return figure


def order(found: Sequence[Study], theme: Theme = LIGHT) -> Figure:
    """Team return over the episodes in the order of collection: of medium-replay data, the learning curve."""
    with styled(theme):
        figure = Figure(figsize=(8, 0.7 + 2.1 * len(found)), layout="constrained")
        panels = figure.subplots(len(found), 1, squeeze=False, sharey=True)[:, 0]
        for one, axes, color in zip(found, panels, cycle(theme, len(found)), strict=True):
            values = one.data.episodes.team_returns
            shown = np.unique(np.linspace(0, len(values) - 1, min(len(values), _MOST_DOTS)).astype(int))
            few = len(values) <= _RUG_UNTIL
            size, strength = (6, 0.9) if few else (2.5, 0.35)
            axes.plot(shown, values[shown], ".", color=color, ms=size, alpha=strength, rasterized=True)
            if not few:
                window = max(3, len(values) // 50)
                means = np.convolve(values, np.ones(window) / window, mode="valid")
                axes.plot(np.arange(len(means)) + (window - 1) / 2, means, color=theme.ink, lw=1.5)
            axes.axhline(values.mean(), color=theme.ink, lw=0.8, ls=":")
            axes.set_title(_short(one), fontsize=10)
            axes.set_ylabel("team return")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.margins(x=0.01)
        panels[-1].set_xlabel("episode in the order of collection (line: mean of a fiftieth of them; dotted: of all)")
        return figure


def actions(one: Study, theme: Theme = LIGHT) -> Figure:
    """How often each agent's action components take which value; of discrete actions, how often each is chosen.

    Where there are too many components for a panel each, an agent's are the rows of one panel, darker where more often.
    """
    agents = one.description.agents
    parts = [[None] if agent.discrete else list(range(len(agent.actions))) for agent in agents]
    panels = [(index, part) for index, own in enumerate(parts) for part in own]
    folded = len(panels) > _MOST_PANELS
    if folded:
        panels = [(index, None) for index in range(len(agents))]
    shown = panels[:_MOST_PANELS]
    sizes = {len(own) for own in parts}
    columns = sizes.pop() if not folded and len(sizes) == 1 and 2 <= min(sizes) <= 4 else min(3, len(shown))
    with styled(theme):
        figure, axes = _grid(len(shown), columns, (2.7, 1.75))
        for own, (index, part) in zip(axes, shown, strict=True):
            agent, color = agents[index], theme.series[index % len(theme.series)]
            own.tick_params(labelsize=8)
            if part is None and not agent.discrete:
                edges, shares = _component_shares(one, index, range(len(agent.actions)))
                rows = np.arange(len(shares) + 1) - 0.5
                own.pcolormesh(edges, rows, shares, cmap=_density_colors(theme), vmin=0, rasterized=True)
                own.set_title(f"{agent.name}, by component", fontsize=9)
                own.grid(visible=False)
                continue
            own.yaxis.set_major_formatter(PercentFormatter(1.0))
            if part is None:
                choices = [choice.mean for choice in agent.actions]
                own.bar(range(len(choices)), choices, color=color, alpha=0.8)
                own.axhline(1 / len(choices), color=theme.ink, lw=0.8, ls=":")
                own.set_title(f"{agent.name}, choices", fontsize=9)
            else:
                edges, shares = _component_shares(one, index, [part])
                _outline(own, shares[0], edges, color, None)
                own.axvline(agent.actions[part].mean, color=theme.ink, lw=1)
                at_bound = agent.actions[part].at_bound
                said = "" if at_bound is None else f", {percent(at_bound)} at a bound"
                own.set_title(f"{agent.name} [{part}]{said}", fontsize=9)
        left_out = f" (first {len(shown)} of {len(panels)} agents)" if len(panels) > len(shown) else ""
        figure.suptitle(f"Actions: {one.description.id}{left_out}", fontsize=11)
        return figure


def coverage(one: Study, theme: Theme = LIGHT) -> Figure:
    """Where the states are: density on each of the planes, and of bodies that run their forward speed."""
    planes, speed = one.views.planes, one.views.forward_speed
    count = len(planes) + (speed is not None)
    square = speed is None
    columns = count if count <= 4 else 3 if count % 3 == 0 else 4
    with styled(theme):
        figure, axes = _grid(count, columns, (2.7, 2.9) if count > 1 else (5.2, 4.6))
        extents = _extents(planes, common=square)
        for own, plane, (low, high) in zip(axes, planes, extents, strict=False):  # the last panel may be the speed's
            _density(own, plane, low, high, theme, square)
        if speed is not None:
            own = axes[-1]
            _histogram(own, speed, _edges(speed), theme.series[1], None)
            own.axvline(float(speed.mean()), color=theme.ink, lw=1)
            own.yaxis.set_major_formatter(PercentFormatter(1.0))
            own.set_xlabel("forward speed (m/s)", fontsize=8)
            own.set_title(f"mean {number(float(speed.mean()))} m/s", fontsize=9)
            own.tick_params(labelsize=8)
        figure.suptitle(f"Coverage: {one.description.id}", fontsize=11)
        return figure


def sources(one: Study, theme: Theme = LIGHT) -> Figure:
    """Team returns of each behaviour policy's episodes; of more than eight policies, mean and deviation of each."""
    episodes, described = one.data.episodes, one.description
    with styled(theme):
        figure = Figure(figsize=(8, 4.4), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(f"Sources: {described.id}")
        if len(described.sources) > _MOST_SOURCES:
            rows = [(row, s.return_mean, s.return_std) for row, s in enumerate(described.sources) if s.episodes]
            places, means, deviations = zip(*rows, strict=True)
            axes.errorbar(places, means, deviations, fmt="o", color=theme.series[0], ms=4, elinewidth=1, alpha=0.8)
            axes.set(xlabel="behaviour policy, in the order of the table", ylabel="team return, mean ± std")
            return figure
        edges = _edges(episodes.team_returns)
        for index, color in enumerate(cycle(theme, len(described.sources))):
            source = described.sources[index]
            values = episodes.team_returns[episodes.policy == index]
            if values.size:
                said = f"{source.name} (step {source.step:,}), {percent(source.share)} of the transitions"
                weights = np.full(len(values), 1 / episodes.num_episodes)
                label = f"{said}: {spread(source.return_mean, source.return_std)}"
                _histogram(axes, values, edges, color, label, weights)
        axes.set(xlabel="team return of an episode", ylabel="share of all episodes")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        figure.legend(loc="outside lower center")
        return figure


def plan(found: Sequence[Study]) -> dict[str, Draw]:
    """All figures of these data sets by file name (without ending), in the order in which they are best seen."""
    drawn: dict[str, Draw] = {}
    for environment in dict.fromkeys(one.description.environment for one in found):
        same = [one for one in found if one.description.environment == environment]
        drawn[f"{environment}-returns"] = lambda theme, same=same: returns(same, theme)
        drawn[f"{environment}-order"] = lambda theme, same=same: order(same, theme)
    for one in found:
        drawn.update(plan_card(one))
    return drawn


def plan_card(one: Study) -> dict[str, Draw]:
    """The figures that show a single data set, by file name (without ending)."""
    name = one.description.id.replace("/", "-")
    drawn: dict[str, Draw] = {}
    if len(one.description.sources) > 1:
        drawn[f"{name}-sources"] = lambda theme: sources(one, theme)
    drawn[f"{name}-coverage"] = lambda theme: coverage(one, theme)
    drawn[f"{name}-actions"] = lambda theme: actions(one, theme)
    return drawn


def _extents(planes: Sequence[Plane], *, common: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Views, each [2] and [2], that hold the bounds and nearly all points, whatever flew away.

    In common they are one square, so that planes of the same kind can be compared.
    """
    found = []
    for plane in planes:
        margin = 0.06 * (plane.high - plane.low)
        low, high = (np.quantile(plane.points, q, axis=0) for q in (0.005, 0.995))
        found.append((np.minimum(low, plane.low) - margin, np.maximum(high, plane.high) + margin))
    if not common:
        return found
    low, high = (fold([extent[i] for extent in found], axis=0) for i, fold in enumerate((np.min, np.max)))
    centre, half = (low + high) / 2, float(np.max(high - low)) / 2
    return [(centre - half, centre + half)] * len(found)


def _density(axes: Axes, plane: Plane, low: np.ndarray, high: np.ndarray, theme: Theme, square: bool) -> None:
    points = plane.points
    cells = int(np.clip(math.sqrt(len(points)) / 2.5, 24, 80))
    counts, xs, ys = np.histogram2d(
        points[:, 0], points[:, 1], bins=cells, range=[(low[0], high[0]), (low[1], high[1])]
    )
    image = np.ma.masked_equal(counts.T, 0)
    axes.pcolormesh(
        xs, ys, image, cmap=_density_colors(theme), norm=LogNorm(1, max(2.0, float(counts.max()))), rasterized=True
    )
    (left, bottom), (width, height) = plane.low, plane.high - plane.low
    axes.add_patch(Rectangle((left, bottom), width, height, fill=False, color=theme.faint, lw=1))
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    if square:
        axes.set_aspect("equal")
    axes.set_title(f"{plane.name}\nvisited {percent(plane.visited)}, evenly {percent(plane.evenness)}", fontsize=9)
    axes.set_xlabel(plane.x_label, fontsize=8)
    axes.set_ylabel(plane.y_label, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(visible=False)


def _histogram(
    axes: Axes, values: np.ndarray, edges: np.ndarray, color: str, label: str | None, weights: np.ndarray | None = None
) -> None:
    shares = np.full(len(values), 1 / len(values)) if weights is None else weights
    _outline(axes, np.histogram(values, bins=edges, weights=shares)[0], edges, color, label)
    if len(values) <= _RUG_UNTIL:
        axes.plot(values, np.zeros(len(values)), "|", color=color, ms=12, clip_on=False)


def _outline(axes: Axes, shares: np.ndarray, edges: np.ndarray, color: str, label: str | None) -> None:
    axes.stairs(shares, edges, fill=True, color=color, alpha=0.3)
    axes.stairs(shares, edges, color=color, lw=1.3, label=label)


def _component_shares(one: Study, index: int, parts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """How often components of an agent's actions lie in each of some bins: edges [bins + 1] and shares [A, bins].

    The bins span the widest bounds among the components, or what is in the data where there are none.
    """
    episodes, agent = one.data.episodes, one.description.agents[index]
    values = episodes.actions[:, index, parts]
    if not episodes.agents_end_together:
        values = values[~episodes.absent[:, index]]
    low, high = (bound[list(parts)] for bound in action_bounds(one.data.environment.spec, index))
    low = float(np.min(np.where(np.isfinite(low), low, [agent.actions[part].low for part in parts])))
    high = float(np.max(np.where(np.isfinite(high), high, [agent.actions[part].high for part in parts])))
    edges = np.linspace(low, high, _BINS + 1) if high > low else _edges(np.array([low, high]))
    counts = [np.histogram(np.clip(own, edges[0], edges[-1]), bins=edges)[0] for own in values.T]
    return edges, np.array(counts) / len(values)


def _density_colors(theme: Theme) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list("density", list(theme.density))


def _edges(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not high > low:
        low, high = low - 0.5, high + 0.5
    # Few values leave many bins empty.
    bins = int(np.clip(2 * math.sqrt(len(values)), 8, _BINS))
    return np.linspace(low, high, bins + 1)


def _grid(count: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    rows = -(-count // columns)
    figure = Figure(figsize=(max(columns * size[0], 5.0), rows * size[1] + 0.5), layout="constrained")
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
    return figure, axes


def _short(one: Study) -> str:
    return one.description.id.rpartition("/")[2]
