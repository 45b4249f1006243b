"""Seeds that were trained apart stand together in reports, and nothing else does."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from om2p_train import covered, records, reporting, results
from om2p_train.reporting import tables

from .written_runs import write_run

EARLY, LATE = ((1.0, 2.0, 3.0), (40.0, 50.0, 60.0)), ((4.0, 5.0), (70.0, 80.0))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Seeds 3 and 4, which sort before seeds 0 to 2, and another method."""
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
    assert [part.folder.name for part in run.parts] == ["a", "b"]
    assert [part.folder.name for part in found.runs[1].parts] == ["c"]


def test_files_say_where_every_seed_was_trained(runs):
    found = results.gather([runs])
    rows = [row for row in csv.DictReader(tables.comma_separated(found).splitlines()) if row["method"] == "om2p"]
    assert [(row["seed"], Path(row["folder"]).name) for row in rows] == [
        ("0", "b"), ("1", "b"), ("2", "b"), ("3", "a"), ("4", "a")
    ]  # fmt: skip
    assert [row[3] for row in tables.configurations(found).rows] == ["3, 4", "0, 1, 2", "0, 1, 2"]
    records.write(found.runs, runs / "runs.jsonl")
    lines = [json.loads(line) for line in (runs / "runs.jsonl").read_text().splitlines()]
    assert [(line["folder"], line["seeds"], line["commit"]) for line in lines] == [
        ("a", [3, 4], "123456"), ("b", [0, 1, 2], "abcdef"), ("c", [0, 1, 2], "abcdef")
    ]  # fmt: skip
    assert reporting.text(results.gather([runs / "runs.jsonl"])) == reporting.text(found)


def test_policies_are_found_where_their_seed_was_trained(runs):
    (joined, _), _ = covered._of_runs([runs])
    places = {seed: path.relative_to(runs).as_posix() for seed, path in zip(joined.seeds, joined.paths, strict=True)}
    early, late = (
        {seed: f"{folder}/policies/seed{seed}.safetensors" for seed in seeds}
        for folder, seeds in (("b", range(3)), ("a", (3, 4)))
    )
    assert places == early | late


@pytest.mark.parametrize(
    "other",
    [
        {"first_seed": 2},  # a seed of both
        {"first_seed": 3, "settings": ["options.eta=0.7"]},
        {"first_seed": 3, "versions": {"om2p": "0.0.9"}},
        {"first_seed": 3, "finished": False},
    ],
    ids=["a seed twice", "another recipe", "another version", "unfinished"],
)
def test_other_runs_stay_apart(other, tmp_path):
    write_run(tmp_path / "a", "om2p", EARLY)
    write_run(tmp_path / "b", "om2p", LATE, **other)
    found = results.gather([tmp_path])
    assert all(run.parts == (run,) for run in found.runs)
    assert len(found.runs) + len(found.gaps) == 2
