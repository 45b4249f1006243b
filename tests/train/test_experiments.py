"""The bundled experiments: complete, at every scale, and with the numbers that the papers print."""

from __future__ import annotations

import pytest

from om2p_data.envs import TASKS
from om2p_data.errors import UserError
from om2p_data.tiers import Tier
from om2p_train import config, experiments, recorded_run
from om2p_train.config import Scale
from om2p_train.experiments import Experiment
from om2p_train.reporting import papers
from om2p_train.sweep import DataJob, TrainJob

from .written_runs import write_run

SCALES = {"cpu": (Scale.CPU, 3, 100_000), "paper": (Scale.PAPER, 5, 1_000_000), "strict": (Scale.PAPER, 10, 1_000_000)}


@pytest.mark.parametrize("name", experiments.names())
@pytest.mark.parametrize("scale", SCALES)
def test_an_experiment_expands_at_every_scale(name, scale, tmp_path):
    experiment, amount = experiments.read(name), experiments.protocol(scale)
    jobs, cells = experiments.jobs(experiment.part, amount, tmp_path, tmp_path / "data")
    assert len({job.name for job in jobs}) == len(jobs)
    assert set(cells) == {part.name for part in experiment.part}
    own, seeds, transitions = SCALES[scale]
    asked = {len(part.seeds) if part.seeds else seeds for part in experiment.part}
    for job in jobs:
        if isinstance(job, TrainJob):
            assert job.scale is own
            assert len(job.seeds) in asked
            assert {need in {other.name for other in jobs} for need in job.needs} == {True}
        elif isinstance(job, DataJob) and job.tier is not Tier.MEDIUM_REPLAY:
            assert job.transitions == transitions
    kinds = [isinstance(job, TrainJob) for job in jobs]
    assert kinds == sorted(kinds)  # data sets first


def test_the_strict_protocol_evaluates_on_32_episodes(tmp_path):
    experiment = experiments.read("table1")
    for scale, episodes in (("paper", 10), ("strict", 32)):
        _, cells = experiments.jobs(experiment.part, experiments.protocol(scale), tmp_path)
        assert {job.recipe["run"]["evaluation_episodes"] for job in cells["returns"]} == {episodes}
        assert {job.recipe["run"]["updates"] for job in cells["returns"]} == {1_000_000}


def test_published_numbers_are_complete_and_name_what_is_run():
    """Sums over the printed tables: a mistyped digit shows."""
    table1 = experiments.read("table1")
    (part,) = table1.part
    assert {*table1.published} == {*part.tasks}
    totals = dict.fromkeys(("omar", "ma-sfbc", "ma-fql", "om2p-paper"), 0.0)
    for by_tier in table1.published.values():
        assert {*by_tier} == {*part.tiers}
        for values in by_tier.values():
            assert {*values} == {*totals}
            for recipe, (mean, _) in values.items():
                totals[recipe] += mean
    assert {recipe: round(total, 1) for recipe, total in totals.items()} == {
        "omar": 12717.9,
        "ma-sfbc": 7145.2,
        "ma-fql": 14688.3,
        "om2p-paper": 15784.7,
    }
    for name in experiments.names():
        experiment = experiments.read(name)
        run = {algorithm for part in experiment.part for algorithm in part.algorithms}
        named = {
            recipe for by_tier in experiment.published.values() for values in by_tier.values() for recipe in values
        }
        assert named | {*experiment.published_cost} <= run
        assert {task for part in experiment.part for task in part.tasks} <= {*TASKS}


def test_a_part_can_be_narrowed():
    (part,) = experiments.narrowed(experiments.read("table1"), ["cn"], [Tier.EXPERT, Tier.MEDIUM])
    assert part.tasks == ("cooperative-navigation",)
    assert part.tiers == (Tier.MEDIUM, Tier.EXPERT)
    assert experiments.narrowed(experiments.read("table1"), [], []) == list(experiments.read("table1").part)
    (part,) = experiments.narrowed(experiments.read("table1"), [], [], ["om2p", "bc"], [7])
    assert (part.algorithms, part.seeds) == (("bc", "om2p"), (7,))
    tuning = experiments.read("tuning")
    assert [part.name for part in experiments.narrowed(tuning, [], [], ["omar"])] == ["omar", "omar-replay"]
    assert [part.name for part in experiments.narrowed(tuning, [], [Tier.EXPERT], ["omar"])] == ["omar"]
    with pytest.raises(UserError, match="unknown recipe in the experiment 'om2q': did you mean 'om2p'"):
        experiments.narrowed(experiments.read("table1"), [], [], ["bc", "om2q"])
    with pytest.raises(UserError, match=r"none of these: its tasks are world, its tiers medium-replay, .*expert$"):
        experiments.narrowed(experiments.read("figure4"), ["cn"], [])


def test_the_finite_differences_of_figure2_are_steps_that_mean_something(tmp_path):
    part = experiments.read("figure2").part[1]
    for settings in part.variants.values():
        config.load("om2p-paper-gradient", "cooperative-navigation", Tier.MEDIUM, settings=settings)


def test_bad_experiments_are_refused():
    with pytest.raises(UserError, match="unknown experiment 'table3'"):
        experiments.read("table3")
    with pytest.raises(UserError, match="unknown scale 'night'"):
        experiments.protocol("night")
    part = {"name": "a", "title": "a", "show": "table", "axis": "options.eta", "tasks": ["cn"], "tiers": ["medium"]}
    with pytest.raises(ValueError, match="an axis where show = 'axis', and only there"):
        Experiment.model_validate({"title": "a", "source": "b", "part": [part | {"algorithms": ["bc"]}]})


def test_a_choice_is_among_variants_of_one_algorithm():
    part = {"name": "a", "title": "a", "show": "choice", "tasks": ["cn"], "tiers": ["medium"], "algorithms": ["bc"]}
    two = {"variants": {"a": [], "b": ["run.updates=1"]}}
    for changes in ({}, two | {"algorithms": ["bc", "om2p"]}):
        with pytest.raises(ValueError, match="one algorithm and two variants or more"):
            Experiment.model_validate({"title": "a", "source": "b", "part": [part | changes]})
    Experiment.model_validate({"title": "a", "source": "b", "part": [part | two]})


def test_runs_go_to_the_cells_that_ask_for_them(tmp_path):
    """eta by data set, recipe, scale and the variant's setting; other runs belong nowhere."""
    part = experiments.read("figure3").part[0]
    words = {"task": "world", "tier": "expert", "settings": ["options.eta=10.0"]}
    right = recorded_run.read(write_run(tmp_path / "right", "om2p-paper", **words))
    wrong = [
        recorded_run.read(write_run(tmp_path / f"wrong-{index}", **({"algo": "om2p-paper"} | words | changes)))
        for index, changes in enumerate(
            ({"task": "cn"}, {"algo": "om2p-released"}, {"scale": Scale.PAPER}, {"settings": []})
        )
    ]
    ((_, found),), left = experiments.assign([part], experiments.protocol("cpu"), [*wrong, right])
    assert found.runs == (right,)
    assert found.labels == ("om2p-paper, eta=10.0",)
    assert len(found.gaps) == len(part.tiers) * len(part.variants) - 1
    assert {gap.why for gap in found.gaps} == {"no run"}
    assert left == wrong


def test_variants_of_a_table_go_by_their_names(tmp_path):
    """Also those that are missing, and in the report's other tables."""
    experiment, amount = experiments.read("improvements"), experiments.protocol("cpu")
    write_run(tmp_path / "whole", "om2p")
    write_run(tmp_path / "one", "om2p", settings=["options.candidates=1"])
    _, asked = experiments.jobs(experiment.part, amount, tmp_path)
    ((part, found),) = experiments.standing(experiment, amount, asked, tmp_path)
    assert found.methods == ["om2p, whole", "om2p, one candidate"]
    assert {gap.label for gap in found.gaps} == {f"om2p, {name}" for name in part.variants}
    table = papers.lay(part, experiment, found).table
    assert table.header == ("data set", "data", "om2p, whole", "om2p, one candidate")
    assert "; whole: as the recipe is; no guidance: options.eta=0.0; " in table.note
    assert "*" not in table.note
    text, _ = papers.write(experiment, "cpu", [(part, found)], tmp_path / "out")
    assert "om2p, no guidance" in text
    assert "om2p, one candidate" in (tmp_path / "out" / "results.csv").read_text()
