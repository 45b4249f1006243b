"""Run records: a line holds all that a report shows of a run, and nothing that is wrong passes for a run."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from om2p_data.errors import UserError
from om2p_train import recorded_run, records, reporting, results
from om2p_train.bench import digest
from om2p_train.reporting import comparison, tables

from .written_runs import write_run

SHOWN = (tables.grid, tables.details, comparison.aggregates, tables.costs, tables.configurations, tables.datasets)


@pytest.fixture
def two(tmp_path):
    """Places of two runs, whose returns have digits to lose."""
    third = (1 / 3, 200 / 3, 0.1 + 0.2)
    return [
        write_run(tmp_path / "runs" / "bc", "bc", (third, (1e-7, 60, 70))),
        write_run(tmp_path / "runs" / "om2p", "om2p", ((1, 2, 3), third), settings=["options.eta=0.3"]),
    ]


def test_a_report_from_records_is_the_report_from_the_folders(two, tmp_path):
    from_folders, path = results.gather(two), tmp_path / "report" / "runs.jsonl"
    path.parent.mkdir()
    records.write(from_folders.runs, path)
    lines = path.read_text().splitlines()
    assert [json.loads(line)["folder"] for line in lines] == ["../runs/bc", "../runs/om2p"]
    from_records = results.gather([path])
    for run, other in zip(from_folders.runs, from_records.runs, strict=True):
        np.testing.assert_array_equal(run.returns, other.returns)
        np.testing.assert_array_equal(run.updates, other.updates)
        same = {"returns": run.returns, "updates": run.updates}
        assert dataclasses.replace(other, **same) == dataclasses.replace(run, **same)
    assert reporting.text(from_records) == reporting.text(from_folders)
    assert tables.comma_separated(from_records) == tables.comma_separated(from_folders)
    assert [show(from_records) for show in SHOWN] == [show(from_folders) for show in SHOWN]


def test_a_run_counts_once_however_it_is_given(two, tmp_path):
    path = tmp_path / "runs.jsonl"
    records.write(results.gather(two).runs, path)
    path.write_text(path.read_text() * 2)
    assert len(results.gather([*two, path]).runs) == 2
    other = path.read_text().replace("2026-01-02", "2026-01-03")
    path.write_text(other)
    with pytest.raises(UserError, match=r"these are different runs of the same folder .*bc: report them apart"):
        results.gather([two[0], path])


def test_a_record_does_not_say_how_a_machine_is_laid_out(two, tmp_path):
    """Runs that share nothing with the file but the root are named by as much as tells them apart."""
    one, other = map(results.read, two)
    for folders, named in (
        (["/elsewhere/of/mine/runs/bc", "/elsewhere/of/mine/runs/om2p"], ["bc", "om2p"]),
        (["/elsewhere/of/mine/runs/bc", "/third/of/mine/bc"], ["runs/bc", "mine/bc"]),
        (["/elsewhere/of/mine/bc", str(tmp_path / "om2p")], ["bc", "om2p"]),
        (["/mine/bc", "/of/mine/bc"], ["mine/bc", "of/mine/bc"]),
    ):
        runs = [
            dataclasses.replace(run, folder=Path(folder)) for run, folder in zip((one, other), folders, strict=True)
        ]
        records.write(runs, tmp_path / "runs.jsonl")
        lines = (tmp_path / "runs.jsonl").read_text().splitlines()
        assert [json.loads(line)["folder"] for line in lines] == named


def test_a_run_that_nobody_could_play_has_a_record(tmp_path):
    folder = write_run(tmp_path / "bc", random_return_mean=None)
    (folder / "evaluations.csv").write_text("update,seed,episode,return\n")
    records.write([recorded_run.read(folder)], tmp_path / "runs.jsonl")
    (run,) = records.read(tmp_path / "runs.jsonl")
    assert not run.played
    assert run.returns.shape == (0, 3)


def test_a_digest_is_a_file_of_records(two, tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["digest", str(two[0]), str(out)])
    digest.main()
    (run,) = results.gather([out]).runs
    np.testing.assert_array_equal(run.final, results.read(two[0]).final)
    assert json.loads(out.read_text())["commit"] == "abcdef"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0]}, r"line 2 of .*runs\.jsonl is damaged: ValueError: the record lacks returns of a seed"),
        ({"returns": [[1, 2, 3]]}, "the record lacks returns of a seed"),
        ({"returns": [[1, 2], [3, 4], [5, 6]]}, "the record lacks returns of a seed"),
        ({"returns": [[1, 2, float("nan")], [1, 2, 3]]}, "the record holds a return that is no number"),
        ({"updates": [100, 150]}, "the record does not reach update 200"),
        ({"updates": [], "returns": []}, "the record does not reach update 200"),
        ({"updates": None}, r"line 2 of .* is damaged: ValidationError: updates: "),
        ({"finished": False}, "the run has not finished"),
        ({"recipe": {}, "versions": {"om2p": "9.9"}}, r"line 2 of .* was written by om2p 9\.9 and cannot be read by"),
    ],
)
def test_damage_is_one_line_with_its_place(changes, message, two, tmp_path):
    path = tmp_path / "runs.jsonl"
    records.write(results.gather(two).runs, path)
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{json.dumps(json.loads(second) | changes)}\n")
    with pytest.raises(UserError, match=message) as caught:
        results.gather([path])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"runs\.jsonl holds no run records"),
        (b"\n\n", r"runs\.jsonl holds no run records"),
        (b'{"folder": "a"', r"line 1 of .*runs\.jsonl is damaged: JSONDecodeError"),
        (b"[1]\n", r"line 1 of .*runs\.jsonl is damaged: ValueError: it holds no table"),
        (b"\xff", r"cannot read .*runs\.jsonl"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        results.gather([path])


def test_a_place_that_cannot_be_written_is_one_line(two, tmp_path):
    with pytest.raises(UserError, match=r"^cannot write .*nowhere.*: "):
        records.write(results.gather(two).runs, tmp_path / "nowhere" / "runs.jsonl")
