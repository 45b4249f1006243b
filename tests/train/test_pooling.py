"""Seeds that were trained apart stand together in reports, and nothing else does."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from om2p_data.errors import UserError
from om2p_data.tiers import Tier
from om2p_train import config, covered, records, reporting, results
from om2p_train.config import Scale
from om2p_train.pooling import pool
from om2p_train.reporting import tables

from .written_runs import write_run

EARLY, LATE = ((1.0, 2.0, 3.0), (40.0, 50.0, 60.0)), ((4.0, 5.0), (70.0, 80.0))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Seeds 3 and 4, found before seeds 0 to 2, and another method."""
    write_run(tmp_path / "a", "om2p", LATE, first_seed=3, commit="123456", started="2026-02-03T00:00:00+00:00")
    write_run(tmp_path / "b", "om2p", EARLY)
    write_run(tmp_path / "c", "bc")
    return tmp_path


def test_later_seeds_join_the_earlier_ones(runs):
    found = results.gather([runs])
    assert found.methods == ["om2p", "bc"]
    run = found.runs[0]
    assert run.facts.seeds == (0, 1, 2, 3, 4)
    np.testing.assert_array_equal(run.returns, [[1, 2, 3, 4, 5], [40, 50, 60, 70, 80]])
    np.testing.assert_array_equal(run.final, [40, 50, 60, 70, 80])
    assert run.facts.timing.training_seconds == 120
    assert run.facts.timing.evaluation_seconds == 7
    assert run.facts.timing.peak_memory_mb == 512
    assert run.facts.timing.updates_per_second is None
    assert [part.folder.name for part in run.parts] == ["b", "a"]
    assert [part.folder.name for part in found.runs[1].parts] == ["c"]


def test_files_say_where_every_seed_was_trained(runs):
    found = results.gather([runs])
    rows = [row for row in csv.DictReader(tables.comma_separated(found).splitlines()) if row["method"] == "om2p"]
    assert [(row["seed"], Path(row["folder"]).name) for row in rows] == [
        ("0", "b"), ("1", "b"), ("2", "b"), ("3", "a"), ("4", "a")
    ]  # fmt: skip
    assert [row[3] for row in tables.configurations(found).rows] == ["0, 1, 2", "3, 4", "0, 1, 2"]
    records.write(found.runs, runs / "runs.jsonl")
    lines = [json.loads(line) for line in (runs / "runs.jsonl").read_text().splitlines()]
    assert [(line["folder"], line["seeds"], line["commit"]) for line in lines] == [
        ("b", [0, 1, 2], "abcdef"),
        ("a", [3, 4], "123456"),
        ("c", [0, 1, 2], "abcdef"),
    ]
    assert reporting.text(results.gather([runs / "runs.jsonl"])) == reporting.text(found)


def test_policies_are_found_where_their_seed_was_trained(runs):
    (joined, _), _ = covered._of_runs([runs])
    assert joined.seeds == (0, 1, 2, 3, 4)
    assert joined.commits == (*["abcdef"] * 3, *["123456"] * 2)
    assert [path.relative_to(runs).as_posix() for path in joined.paths] == [
        *(f"b/policies/seed{seed}.safetensors" for seed in (0, 1, 2)),
        *(f"a/policies/seed{seed}.safetensors" for seed in (3, 4)),
    ]


def test_a_reader_is_told(runs):
    told = "seeds that were trained apart stand together: om2p on om2p/cooperative-navigation/medium-v0"
    assert told in results.gather([runs]).notes()
    added = "with the sum of their seconds"
    assert added in tables.costs(results.gather([runs])).note
    assert added not in tables.costs(results.gather([runs / "a"])).note


NOW = config.load("om2p", "cooperative-navigation", Tier.MEDIUM, Scale.CPU).tables()
RUN = {"updates": 200, "evaluate_every": 100, "evaluation_episodes": 2}
OTHER = {
    "another recipe's name": {"recipe_name": "mine"},
    "another data set of the same content": {"dataset": "om2p/cooperative-navigation/copy-v0"},
    "another scale": {"scale": Scale.PAPER, "recipe": NOW | {"run": NOW["run"] | RUN}},
    "other overrides": {"settings": ["options.eta=0.3"], "recipe": NOW | {"run": NOW["run"] | RUN}},
    "another recipe": {"recipe": NOW | {"run": NOW["run"] | RUN, "options": NOW["options"] | {"eta": 0.7}}},
    "another version": {"versions": {"om2p": "0.0.9"}},
    "unfinished": {"finished": False},
}


@pytest.mark.parametrize("changes", [pytest.param(changes, id=name) for name, changes in OTHER.items()])
def test_other_runs_stay_apart(changes, tmp_path):
    write_run(tmp_path / "a", "om2p", EARLY)
    write_run(tmp_path / "b", "om2p", LATE, first_seed=3, **changes)
    runs, _ = results.collect([tmp_path])
    assert [run.parts for run in pool(runs)] == [(run,) for run in runs]
    assert len(runs) == 2


def test_runs_on_other_data_stay_apart_and_are_refused(tmp_path):
    write_run(tmp_path / "a", "om2p", EARLY)
    write_run(tmp_path / "b", "om2p", LATE, first_seed=3, dataset_hash="other")
    with pytest.raises(UserError, match="content hashes differ"):
        results.gather([tmp_path])


def test_other_moments_of_evaluation_stay_apart(tmp_path):
    write_run(tmp_path / "a", "om2p", EARLY)
    later = write_run(tmp_path / "b", "om2p", LATE, first_seed=3)
    rows = (later / "evaluations.csv").read_text().replace("100,", "150,")
    (later / "evaluations.csv").write_text(rows)
    assert len(results.gather([tmp_path]).runs) == 2


def test_of_runs_that_share_a_seed_the_largest_joins_the_others(tmp_path):
    write_run(tmp_path / "few", "om2p", LATE, first_seed=2)
    write_run(tmp_path / "more", "om2p", EARLY)
    write_run(tmp_path / "rest", "om2p", LATE, first_seed=5)
    found = pool(results.collect([tmp_path])[0])
    assert [run.facts.seeds for run in found] == [(0, 1, 2, 5, 6), (2, 3)]
    assert [part.folder.name for part in found[0].parts] == ["more", "rest"]
