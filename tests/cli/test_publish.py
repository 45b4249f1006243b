"""om2p-train publish: a page from a folder of records, and where there are none."""

from __future__ import annotations

from pathlib import Path

from .conftest import Run, assert_one_line, contents


def test_without_a_folder_it_is_that_of_reproduce(run: Run, here: Path) -> None:
    before = contents(here)
    assert_one_line(run("om2p-train", "publish"), "reproduce does not exist")
    assert contents(here) == before
    (here / "reproduce" / "table1-cpu").mkdir(parents=True)
    assert run("om2p-train", "report", "runs/bc", "--out", "reproduce/table1-cpu").code == 0
    done = run("om2p-train", "publish")
    assert (done.code, done.out, done.err) == (0, "wrote RESULTS.md\n", "")  # a run of no experiment: nothing is drawn
    page = (here / "RESULTS.md").read_text()
    assert "Final policies: all 160 runs are missing." in page
    assert "- recorded, and no part of the experiment as it is today: bc\n" in page
