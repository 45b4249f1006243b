"""om2p-train reproduce: from nothing to the page, given again, with gaps, and refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import om2p_recipes
import pytest

from om2p_data.recipe import bundled
from om2p_train import experiments

from .conftest import Run, assert_one_line

# Two short methods on random data, in the place of a paper's table.
TINY = """
title = "A tiny table"
source = "A paper"

[[part]]
name = "returns"
title = "final policies"
show = "table"
tasks = ["cn"]
tiers = ["random"]
algorithms = ["bc", "bc-flow"]
settings = ["run.updates=20", "run.evaluate_every=10", "run.evaluation_episodes=4", "network.hidden=[8]"]

[published.cooperative-navigation]
random = { bc = [123.4, 5.6] }
"""
PROTOCOLS = """
[cpu]
scale = "cpu"
device = "cpu"
seeds = [0, 1]
transitions = 500
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled recipes with one experiment more; the jobs themselves see the bundled ones."""
    place, own = tmp_path / "recipes", Path(om2p_recipes.__path__[0])
    (place / "paper").mkdir(parents=True)
    (place / "paper" / "tiny.toml").write_text(TINY)
    (place / "protocols.toml").write_text(PROTOCOLS)
    for name in ("data", "train"):
        (place / name).symlink_to(own / name)
    monkeypatch.setattr("om2p_data.recipe._bundle", lambda: place)
    assert bundled("paper") == ["tiny"]


def test_a_table_from_nothing_and_given_again(run: Run, here: Path, tiny: None) -> None:
    one = run("om2p-train", "reproduce", "tiny", "--recipes", "bc-flow, ", "--list")
    assert "bc-flow" in one.out
    assert "--algo bc " not in one.out
    assert_one_line(
        run("om2p-train", "reproduce", "tiny", "--recipes", " "), "--recipes ' ' names nothing: write names"
    )
    listed = run("om2p-train", "reproduce", "tiny", "--list")
    assert [line.split()[0] for line in listed.out.splitlines()[::2]] == ["waiting"] * 3
    made = run("om2p-train", "reproduce", "tiny", "--workers", "2")
    assert made.code == 0, made.err
    assert made.out.startswith("A tiny table (A paper), scale cpu\n")
    assert "| 123.4 ± 5.6 |" in made.out
    folder = here / "reproduce" / "tiny-cpu"
    assert "A tiny table (A paper), scale cpu" in (folder / "report.html").read_text()
    assert {"runs", "logs", "table.md", "table.tex", "results.csv", "runs.jsonl", "curves.png"} <= {*os.listdir(folder)}
    times = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()}
    again = run("om2p-train", "reproduce", "tiny")
    assert again.code == 0
    assert again.out == made.out
    assert times == {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()}
    facts = next((folder / "runs").glob("*bc-flow*")) / "run.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"dataset_hash": "other"}))
    found = run("om2p-train", "reproduce", "tiny")
    assert_one_line(
        found, r"bc-flow.* learned from other contents of om2p/cooperative-navigation/random-v0 than are there"
    )


def test_what_was_asked_for_apart_stands_together(run: Run, here: Path, tiny: None) -> None:
    bc = run("om2p-train", "reproduce", "tiny", "--recipes", "bc")
    assert "bc-flow" not in bc.out
    flow = run("om2p-train", "reproduce", "tiny", "--recipes", "bc-flow")
    assert "±" in bc.out
    assert "bc-flow" in flow.out
    records = here / "reproduce" / "tiny-cpu" / "runs.jsonl"
    assert [json.loads(line)["recipe_name"] for line in records.read_text().splitlines()] == ["bc", "bc-flow"]
    more = run("om2p-train", "reproduce", "tiny", "--recipes", "bc", "--seeds", "2-3")
    assert more.code == 0, more.err
    assert "seeds that were trained apart stand together: bc on om2p/cooperative-navigation/random-v0" in more.out
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    assert [(row["recipe_name"], row["seeds"]) for row in rows] == [
        ("bc", [0, 1]),
        ("bc", [2, 3]),
        ("bc-flow", [0, 1]),
    ]


def test_without_a_name_the_experiments_are_listed(run: Run, here: Path) -> None:
    found = run("om2p-train", "reproduce")
    assert [line.split()[0] for line in found.out.splitlines()] == experiments.names()
    assert "Time and memory (OM2P paper, Table 2)" in found.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table3"], "unknown experiment 'table3': did you mean"),
        (["table1", "--scale", "night"], "unknown scale 'night'"),
        (["table1", "--tasks", "chess"], "unknown environment 'chess'"),
        (["figure4", "--tasks", "cn"], "the experiment has none of these: its tasks are world"),
        (["table1", "--tiers", "best"], "unknown tier 'best'"),
        (["table1", "--device", "tpu"], "unknown device 'tpu'"),
        (["table1", "--seeds", "0,0"], "seeds must be different numbers, not 0, 0"),
        (["table1", "--seeds", "x"], "--seeds takes numbers"),
        (["table2", "--workers", "2"], "runs of this experiment are timed, one at a time: leave --workers out"),
        (["table1", "--gpus-per-job", "0.5"], "--gpus-per-job is an option of --engine ray"),
        (["table1", "--engine", "dask"], "unknown engine 'dask'"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], message: str, run: Run, here: Path) -> None:
    assert_one_line(run("om2p-train", "reproduce", *words), message)
    assert list(here.iterdir()) == []


def test_scripts_for_slurm(run: Run, here: Path) -> None:
    words = ["figure4", "--scale", "paper", "--seeds", "0-1", "--threads", "4", "--workers", "3", "--sbatch", "scripts"]
    found = run("om2p-train", "reproduce", *words)
    assert found.out == "20 of 20 jobs are to be done; to hand them to Slurm: scripts/submit.sh\n"
    lines = (here / "scripts" / "train.txt").read_text().splitlines()
    assert len(lines) == 16
    assert all("--seeds 0,1 --scale paper --device cuda" in line for line in lines)
    assert all(line.endswith(" --threads 4") for line in lines)
    assert "#SBATCH --array=1-16%3\n" in (here / "scripts" / "train.sbatch").read_text()
    run("om2p-train", "reproduce", "table2", "--sbatch", "timed")
    assert "#SBATCH --array=1-5%1\n" in (here / "timed" / "train.sbatch").read_text()
