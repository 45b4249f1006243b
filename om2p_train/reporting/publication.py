"""A page of Markdown with the tables and figures of all experiments that have runs, for a repository.

The same runs give the same page, byte for byte: it holds no date of its own and no path of the machine.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from om2p_data.errors import UserError, unknown
from om2p_data.inspect.drawing import Draw, save_all
from om2p_data.inspect.tables import Table
from om2p_data.storage import parse_id, reason, write_whole
from om2p_train import experiments
from om2p_train.config import Scale
from om2p_train.experiments import Experiment, Part, Show
from om2p_train.pooling import pool
from om2p_train.recorded_run import Run
from om2p_train.records import RECORDS_FILE
from om2p_train.reporting import comparison, figures, papers, tables
from om2p_train.results import Results, collect

PAGE = "RESULTS.md"  # its usual name
_RUNS = "runs"  # folder of an experiment's runs
_VERSIONS = ("om2p", "torch")  # of the packages that decide numbers
_READING = (
    "How to read it. Returns are undiscounted returns of a team's episode, of final policies, over fresh episodes; "
    "`data` is the mean return of the data set. Bold marks the best and all that a test cannot tell from it, be it "
    "for a large spread. A data set's tier says who played: `expert` and `medium` are teams of two levels, "
    "`medium-expert` a tenth of the expert's and for the rest the medium team's (on HalfCheetah one episode in a "
    "hundred or fewer), `medium-replay` all that the medium team saw while it learned. A scale says "
    "how much of everything is taken: `cpu` is a laptop's, `paper` the papers'. Methods are recipes of `om2p-train`: "
    "`om2p-paper` and `om2p-released` are the OM2P paper's text and its authors' code, `om2p` is ours, `bc-flow` is "
    "`om2p` without Q, and `vgm2p` a reconstruction. A scale's recipes have what the tables under `tuning` mark, "
    "where there are any; BC's step size is that of all recipes."
)


_Linked = Callable[[Mapping[str, Draw]], list[str]]  # figures by name -> links to them


@dataclass(frozen=True)
class _Chapter:
    """An experiment at a scale.

    Attributes:
        name, scale: of the experiment, and of its reproduction.
        experiment: what it is.
        found: the runs of each part.
        left: names of runs that belong to none; damaged: what could not be read.
    """

    name: str
    scale: str
    experiment: Experiment
    found: tuple[tuple[Part, Results], ...]
    left: tuple[str, ...]
    damaged: tuple[str, ...]

    @cached_property
    def runs(self) -> list[Run]:
        return [run for _, results in self.found for run in results.runs]

    @cached_property
    def cells(self) -> int:
        return len(self.runs) + sum(len(results.gaps) for _, results in self.found)


def write(places: Sequence[Path], page: Path) -> list[Path]:
    """Write the page, and its figures into a folder of its name beside it.

    Args:
        places: folders `<experiment>-<scale>` as `om2p-train reproduce` leaves them, with records, runs or both; or
            folders that hold such folders.
        page: a file with the ending .md.

    Returns:
        The paths written.

    Raises:
        UserError: a place holds nothing of that kind, a folder or the page has another name, a record is damaged, runs
            of an experiment learned from different contents of a data set, or the page cannot be written.
    """
    if page.suffix != ".md":
        raise UserError(f"the page is Markdown: choose a name that ends in .md instead of {page}")
    chapters = [_chapter(name, scale, folders) for (name, scale), folders in _folders(places).items()]
    order, sizes = list(Show), experiments.scales()
    chapters.sort(key=lambda one: (order.index(one.experiment.part[0].show), one.name, -sizes.index(one.scale)))
    drawn: dict[str, Draw] = {}
    pictures = page.with_suffix("")
    sections = [_section(chapter, quote(pictures.name), drawn) for chapter in chapters]
    text = "\n\n".join([*_top(places, page), *_status(chapters), *sections]) + "\n"
    paths = save_all(drawn, pictures) if drawn else []
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_whole(page, lambda partial: partial.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot write {page}: {reason(error)}") from error
    return [page, *paths]


def _folders(places: Iterable[Path]) -> dict[tuple[str, str], list[Path]]:
    """Folders of each experiment at each scale."""
    known = {f"{name}-{scale}": (name, scale) for name in experiments.names() for scale in experiments.scales()}
    found: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place} is not a folder" if place.exists() else f"{place} does not exist")
        folders = [place] if _sources(place) else [child for child in sorted(place.iterdir()) if _sources(child)]
        if not folders:
            raise UserError(f"{place} holds no <experiment>-<scale>/{RECORDS_FILE}: `om2p-train reproduce` writes them")
        for folder in folders:
            name = folder.resolve().name
            if name not in known:
                raise UserError(f"{folder}: {unknown('experiment and scale', name, known)}")
            found[known[name]].append(folder)
    return found


def _sources(folder: Path) -> list[Path]:
    """Where the runs of an experiment stand: folders, which are whole, before records."""
    return [path for path in (folder / _RUNS, folder / RECORDS_FILE) if path.exists()]


def _chapter(name: str, scale: str, folders: Sequence[Path]) -> _Chapter:
    runs, damaged = collect(source for folder in folders for source in _sources(folder))
    experiment = experiments.read(name)
    finished = pool(run for run in runs if run.facts.finished)
    found, left = experiments.assign(experiment.part, experiments.protocol(scale), finished)
    named = tuple((part, replace(results, protocol=scale)) for part, results in found)
    return _Chapter(name, scale, experiment, named, tuple(run.folder.name for run in left), tuple(damaged))


def _top(places: Sequence[Path], page: Path) -> list[str]:
    folders = [Path(os.path.relpath(place, page.parent)).as_posix() for place in places]
    command = ["om2p-train", "publish", *folders, *(["--out", page.name] if page.name != PAGE else [])]
    listed = ", ".join(f"`{folder}`" for folder in folders)
    return [
        "# Results",
        "The papers' tables and figures from our own runs. A program wrote this page and its figures from the runs "
        f"recorded in {listed}; nothing was added by hand. The same command writes it again, also after more runs:",
        f"```bash\n{shlex.join(command)}\n```",
        _READING,
    ]


def _status(chapters: Sequence[_Chapter]) -> list[str]:
    """How much of everything is there, and on what it ran."""
    rows = [
        (
            f"[{one.name}](#{one.name}-at-scale-{one.scale})",
            one.scale,
            f"{len(one.runs)} of {one.cells}",
            _listed(str(len(run.facts.seeds)) for run in one.runs),
            _listed(part.facts.hardware for run in one.runs for part in run.parts),
            _listed(part.facts.commit or "unknown" for run in one.runs for part in run.parts),
            *(
                _listed(part.facts.versions.get(name) or "" for run in one.runs for part in run.parts)
                for name in _VERSIONS
            ),
        )
        for one in chapters
    ]
    header = ("experiment", "scale", "runs", "seeds", "hardware", "commit", *_VERSIONS)
    there = {(one.name, one.scale) for one in chapters if one.runs}
    absent = {
        name: [scale for scale in experiments.scales() if (name, scale) not in there] for name in experiments.names()
    }
    lines = [f"`{name}` at {', '.join(scales)}" for name, scales in absent.items() if scales]
    text = tables.markdown(Table("What has been run:", header, tuple(rows), text_columns=len(header)))
    return [text, *([f"Without any run: {'; '.join(lines)}."] if lines else [])]


def _section(chapter: _Chapter, pictures: str, drawn: dict[str, Draw]) -> str:
    """A chapter's tables, and links to its figures, which are added to `drawn` by the names of their files."""
    blocks = [
        f"## {chapter.name} at scale {chapter.scale}",
        f"{chapter.experiment.title} ({chapter.experiment.source}).",
    ]

    def show(some: Mapping[str, Draw]) -> list[str]:
        files = {f"{chapter.name}-{chapter.scale}-{name}": draw for name, draw in some.items()}
        drawn.update(files)
        return [f"![{file}]({pictures}/{file}.png)" for file in files]

    for part, results in chapter.found:
        blocks += _part(part, chapter, results, show) if results.runs else [_without(part, results)]
    lines = [f"- left out: {why}" for why in chapter.damaged]
    if chapter.left:
        lines.append(f"- recorded, and no part of the experiment as it is today: {', '.join(chapter.left)}")
    return "\n\n".join([*blocks, *(["\n".join(lines)] if lines else [])])


def _without(part: Part, results: Results) -> str:
    return f"{_sentence(part.title)}: all {len(results.gaps)} runs are missing."


def _part(part: Part, chapter: _Chapter, results: Results, show: _Linked) -> list[str]:
    """A part's tables, each followed by what its runs were, figures and remarks."""
    laid = papers.lay(part, chapter.experiment, results)
    made = _made(results)
    blocks = [f"### {_sentence(part.title)}", _titled(laid.table), made, *show(laid.figures)]
    if part.show is Show.TABLE:
        like_theirs = experiments.protocol(chapter.scale).scale is Scale.PAPER
        theirs = papers.published(chapter.experiment, results) if like_theirs else None
        blocks += [_titled(comparison.standing(results, theirs)), made]
        aggregates, improvement = comparison.aggregates(results), comparison.improvement(results)
        if aggregates is not None and improvement is not None:
            groups = comparison.groups(results)
            blocks += [_titled(aggregates), made, *([] if groups is None else [_titled(groups), made])]
            blocks += show({f"{part.name}-improvement": figures.plan(results)["improvement"]})
            blocks += _folded("The same with intervals", [_titled(improvement), made])
        settings = papers.settings_table(results)
        if settings is not None:
            blocks += _folded("Settings", [_titled(settings)])
    return [*blocks, *filter(None, [_remarks(part, results)])]


def _folded(summary: str, blocks: Sequence[str]) -> list[str]:
    return [f"<details><summary>{summary}</summary>", *blocks, "</details>"]


def _titled(table: Table) -> str:
    return f"#### {tables.markdown(table)}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _made(results: Results) -> str:
    """What the runs of a table were."""
    commits = Counter(part.facts.commit or "unknown" for run in results.runs for part in run.parts)
    many = len(commits) > 1
    listed = ", ".join(
        f"{commit} ({count} run{'s' if count > 1 else ''})" if many else commit for commit, count in commits.items()
    )
    counts = {
        "seed": [len(run.facts.seeds) for run in results.runs],
        "evaluation episode": [run.episodes for run in results.runs],
        "update": [run.recipe["run"]["updates"] for run in results.runs],
    }
    shapes = [" x ".join(map(str, run.recipe["network"]["hidden"])) for run in results.runs]
    words = [_counted(name, values, results) for name, values in counts.items()]
    words.append(f"hidden layers {_with_others(shapes, results)}")
    teams = [run.behavior_teams for run in results.runs]
    if max(teams) > 1:
        told = ["as one team's" if number == 1 else f"told apart as {number} teams'" for number in teams]
        words.append(f"data {_with_others(told, results)}")
    return f"*Runs: scale {results.protocol}; {'; '.join(words)}; commit{'s' if many else ''} {listed}.*"


def _counted(name: str, values: Sequence[int], results: Results) -> str:
    plural = "" if Counter(values).most_common(1)[0][0] == 1 else "s"
    usual, space, others = _with_others([f"{value:,}" for value in values], results).partition(" ")
    return f"{usual} {name}{plural}{space}{others}"


def _with_others(values: Sequence[str], results: Results) -> str:
    """What most runs share, and which data sets, methods, or methods on data sets have something else."""
    (usual, _), *_ = Counter(values).most_common()
    runs = list(zip(values, (tables.short(run.dataset) for run in results.runs), results.labels, strict=True))
    found: dict[str, list[str]] = defaultdict(list)

    def take(name: Callable[[tuple[str, str, str]], str], rest: list[tuple[str, str, str]]) -> list:
        """Name those who all share another value; the runs that are left."""
        shared = defaultdict(set)
        for run in rest:
            shared[name(run)].add(run[0])
        whole = {one: value for one, (value, *more) in shared.items() if value != usual and not more}
        for one, value in whole.items():
            found[value].append(one)
        return [run for run in rest if name(run) not in whole]

    rest = take(lambda run: run[1], runs) if len(set(results.labels)) > 1 else runs
    rest = take(lambda run: run[2], rest)
    take(lambda run: f"{run[2]} on {run[1]}", rest)
    besides = "; ".join(f"{', '.join(names)}: {value}" for value, names in found.items())
    return usual + (f" ({besides})" if besides else "")


def _remarks(part: Part, results: Results) -> str:
    """What is missing, on one line, and what else must be known before comparing."""
    lines = replace(results, gaps=()).notes()
    if results.gaps:
        count = len(results.runs) + len(results.gaps)
        lines.insert(0, f"missing: {len(results.gaps)} of {count} runs, {_missing(part, results)}")
    return "\n".join(f"- {line}" for line in lines)


def _missing(part: Part, results: Results) -> str:
    """The gaps, data sets without the same methods together; a task's tiers are named if they are not all of them."""
    by_dataset: dict[str, list[str]] = defaultdict(list)
    for gap in results.gaps:
        by_dataset[gap.dataset].append(gap.label)
    there = {*results.datasets}
    tiers: Mapping[tuple[str, ...], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for dataset, labels in by_dataset.items():
        known = parse_id(dataset)
        tiers[tuple(labels) if dataset in there else ()][known.task].append(known.tier)
    every, parts = [tier.value for tier in part.tiers], []
    for labels, by_task in tiers.items():
        where = ", ".join(task + ("" if own == every else f" ({', '.join(own)})") for task, own in by_task.items())
        parts.append(f"{', '.join(labels) or 'all'} on {where}")
    return "; ".join(parts)


def _listed(values: Iterable[str]) -> str:
    """Different values, in their order."""
    return ", ".join(dict.fromkeys(value for value in values if value))
