"""om2p-train coverage as a user calls it."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from om2p_data import tensor_file

from .conftest import RANDOM_ID, Run, assert_one_line, contents

LESS = ("--observations", 20, "--neighbours", 4, "--quiet")
FIGURES = {
    f"{name}.{kind}" for name in ("distance", "actions-cooperative-navigation-random") for kind in ("png", "pdf")
}
SEED0, SEED3 = (Path(f"runs/bc/policies/seed{seed}.safetensors") for seed in (0, 3))


def rows(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (folder / "coverage.csv").open(newline="") as file:
        return {(row["policy"], row["seed"]): row for row in csv.DictReader(file)}


def shown(out: str) -> dict[str, list[str]]:
    """Cells of the tables' rows by the first of them."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    return {name: cells for name, *cells in lines}


def test_a_run_is_measured_seed_by_seed(run: Run, here: Path) -> None:
    found = run("om2p-train", "coverage", "runs", *LESS, "--out", "out")
    assert (found.code, found.err) == (0, "")
    assert {path.name for path in (here / "out").iterdir()} == {"coverage.md", "coverage.csv", *FIGURES}
    assert found.out.startswith(written := (here / "out" / "coverage.md").read_text())
    assert found.out[len(written) :].startswith("\nwrote coverage.md, coverage.csv, distance.png, ")
    assert f"{RANDOM_ID}: how far policies keep to the data" in found.out
    assert "modes of the behaviour" not in found.out  # uniform actions have none
    by_seed = rows(here / "out")
    assert list(by_seed) == [("uniform actions", ""), ("data beside themselves", ""), ("bc", "0"), ("bc", "3")]
    facts = json.loads((here / "runs" / "bc" / "run.json").read_text())
    for row in by_seed.values():
        assert (row["dataset"], row["dataset_hash"]) == (RANDOM_ID, facts["dataset_hash"])
        assert (row["observations"], row["neighbours"], row["modes"]) == ("20", "4", "")
    distances = [float(by_seed["bc", seed]["distance"]) for seed in ("0", "3")]
    assert distances[0] != distances[1]
    mean, deviation = np.mean(distances), np.std(distances, ddof=1)
    assert re.search(rf"\| bc +\| {mean:.3f} ± {deviation:.3f} \|.*\| 0\.000 ± 0\.000 \|.*\| +2 \|", found.out)
    # Copied uniform data are nowhere near them, and those are near themselves.
    assert min(distances) > 3 * float(by_seed["uniform actions", ""]["distance"])


def test_the_seed_makes_the_files(run: Run, here: Path) -> None:
    one, same, other = (
        run("om2p-train", "coverage", "runs/bc", *LESS, "--seed", seed, *out)
        for seed, out in ((4, ("--out", "one")), (4, ("--out", "same")), (5, ()))
    )
    assert contents(here / "one") == contents(here / "same")
    assert shown(one.out) == shown(same.out) != shown(other.out)


def test_a_file_is_a_method_of_its_own(run: Run, here: Path) -> None:
    whole = shown(run("om2p-train", "coverage", "runs/bc", *LESS).out)
    found = run("om2p-train", "coverage", SEED3, SEED0, SEED3, *LESS)
    assert (found.code, found.err) == (0, "")
    by_name = shown(found.out)
    assert list(by_name)[-2:] == [str(SEED3), str(SEED0)]
    mean, _, deviation = whole["bc"][0].split()
    values = [float(by_name[str(path)][0]) for path in (SEED0, SEED3)]
    assert float(mean) == pytest.approx(np.mean(values), abs=0.001)
    assert float(deviation) == pytest.approx(np.std(values, ddof=1), abs=0.001)


def test_runs_that_have_not_finished_are_left_out(run: Run, here: Path) -> None:
    (here / "runs" / "half").mkdir()
    facts = json.loads((here / "runs" / "bc" / "run.json").read_text())
    half = facts | {"finished": False, "recipe_name": "half"}
    (here / "runs" / "half" / "run.json").write_text(json.dumps(half))
    found = run("om2p-train", "coverage", "runs", *LESS)
    assert (found.code, found.err) == (0, "")
    assert f"- left out: {RANDOM_ID}: half (not finished)" in found.out
    assert_one_line(run("om2p-train", "coverage", "runs/half", *LESS), "the run in runs/half has not finished")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], r"missing does not exist"),
        (["datasets"], r"datasets is not a run folder and holds none"),
        (["file"], r"cannot read the policy file: "),
        (["runs", "--neighbours", 250], rf"{RANDOM_ID} has 500 transitions: too few for 2 x 250 neighbours"),
        (["runs", "--root", "nowhere"], rf"no data set {RANDOM_ID} in nowhere"),
        (["runs", "--neighbours", 4, "--out", "file/below"], r"cannot write to file/below"),
    ],
)
def test_coverage_refuses(arguments: list, message: str, run: Run, here: Path) -> None:
    before = contents(here)
    found = run("om2p-train", "coverage", "--observations", 5, "--quiet", *arguments)
    assert_one_line(found._replace(out="") if "--out" in arguments else found, message)
    assert contents(here) == before


@pytest.mark.parametrize("place", ["runs/bc", SEED0])
def test_other_data_of_the_same_name_are_refused(place: str | Path, run: Run, here: Path) -> None:
    again = ["generate", "--env", "cn", "--tier", "random", "--transitions", "500", "--seed", "5", "--overwrite"]
    assert run("om2p-data", *again, "--quiet").code == 0
    message = rf"{RANDOM_ID} is not what runs/bc/policies/seed0\.safetensors learned from \(content hashes differ: "
    assert_one_line(run("om2p-train", "coverage", place, *LESS), message)


def test_a_file_that_does_not_say_what_it_learned_from_is_refused(run: Run, here: Path) -> None:
    weights, metadata = tensor_file.read(SEED0)
    card = json.loads(metadata["card"])
    del card["dataset_hash"]
    tensor_file.write(SEED0, weights, {"card": json.dumps(card)})
    message = rf"{SEED0} does not say which content of {RANDOM_ID} it learned from: name its run folder"
    assert_one_line(run("om2p-train", "coverage", SEED0, *LESS), message)
    assert run("om2p-train", "coverage", "runs/bc", *LESS).code == 0
