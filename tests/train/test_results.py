"""Run folders as cells of data sets by methods, and what is missing or does not belong together."""

from __future__ import annotations

import json

import numpy as np
import pytest

from om2p_data.envs import find
from om2p_data.errors import UserError
from om2p_train import results
from om2p_train.config import Scale

from .written_runs import write_run


def test_a_run_says_what_its_folder_says(tmp_path):
    run = results.read(write_run(tmp_path / "bc"))
    np.testing.assert_allclose(run.final, [40, 50, 60])
    np.testing.assert_allclose(run.returns[0], [10, 20, 30])
    np.testing.assert_array_equal(run.updates, [100, 200])
    task = find("cn")
    low, high = task.reference_random, task.reference_expert
    np.testing.assert_allclose(run.normalized(run.final), 100 * (np.array([40, 50, 60]) - low) / (high - low))
    assert run.option("optimizer.batch_size") == 128
    assert run.option("options.nothing") is None


def test_final_and_best_are_apart(tmp_path):
    run = results.read(write_run(tmp_path / "bc", returns=((10, 90), (70, 20), (30, 40))))
    np.testing.assert_allclose(run.final, [30, 40])
    np.testing.assert_allclose(run.best, [70, 90])


def test_folders_are_searched_and_data_sets_come_in_their_order(tmp_path):
    for task, tier in (("hc", "medium"), ("cn", "expert"), ("cn", "medium-replay"), ("world", "medium")):
        write_run(tmp_path / "runs" / f"{task}-{tier}" / "bc", task=task, tier=tier)
    found = results.gather([tmp_path])
    assert [dataset.split("/")[1:] for dataset in found.datasets] == [
        ["cooperative-navigation", "medium-replay-v0"],
        ["cooperative-navigation", "expert-v0"],
        ["world", "medium-v0"],
        ["halfcheetah-2x3", "medium-v0"],
    ]
    assert found.gaps == ()
    assert len(results.gather([tmp_path, tmp_path / "runs" / "hc-medium"]).runs) == 4  # a run counts once


def test_methods_are_named_by_what_tells_them_apart(tmp_path):
    """eta is another number on every tier, and yet `usual` is one method: nobody set it."""
    for tier in ("medium", "expert"):
        write_run(tmp_path / f"{tier}-usual", "om2p", tier=tier, settings=["run.updates=200"])
        strong = ["run.updates=200", "options.eta=0.1", "options.eta=0.3"]  # the last one counts
        write_run(tmp_path / f"{tier}-strong", "om2p", tier=tier, settings=strong)
        write_run(tmp_path / f"{tier}-bc", "bc", tier=tier)
    found = results.gather([tmp_path])
    assert sorted(found.methods) == ["bc", "om2p", "om2p, eta=0.3"]
    assert found.gaps == ()
    assert found.cell("om2p/cooperative-navigation/expert-v0", "om2p, eta=0.3").option("options.eta") == 0.3


def test_runs_of_one_name_on_one_data_set_are_told_apart(tmp_path):
    one = results.read(write_run(tmp_path / "one", "om2p"))
    changed = one.recipe | {"options": one.recipe["options"] | {"eta": 0.2}}
    other = results.read(write_run(tmp_path / "other", "om2p", recipe=changed))
    again = results.read(write_run(tmp_path / "again", "om2p", recipe=changed))
    assert results.labels([one]) == ["om2p"]
    assert results.labels([one, other]) == ["om2p, eta=0.3", "om2p, eta=0.2"]
    assert results.labels([other, again]) == [f"om2p ({tmp_path / 'other'})", f"om2p ({tmp_path / 'again'})"]
    paper = results.read(write_run(tmp_path / "paper", "om2p", scale=Scale.PAPER))
    assert results.labels([one, paper]) == ["om2p, scale=cpu", "om2p, scale=paper"]


def test_what_is_missing_is_named(tmp_path):
    write_run(tmp_path / "a", "bc")
    write_run(tmp_path / "b", "om2p")
    write_run(tmp_path / "c", "bc", tier="expert")
    write_run(tmp_path / "d", "ma-fql", finished=False)
    found = results.gather([tmp_path])
    assert len(found.runs) == 3
    assert sorted(map(str, found.gaps)) == [
        "om2p/cooperative-navigation/expert-v0: ma-fql (no run)",
        "om2p/cooperative-navigation/expert-v0: om2p (no run)",
        "om2p/cooperative-navigation/medium-v0: ma-fql (not finished)",
    ]
    assert "missing on om2p/cooperative-navigation/expert-v0: om2p, ma-fql (no run)" in found.notes()
    assert found.labels == ("bc", "om2p", "bc")


def test_gaps_are_named_as_the_table_would_name_them(tmp_path):
    write_run(tmp_path / "a", "om2p")
    write_run(tmp_path / "b", "om2p", settings=["options.eta=5.0"], finished=False)
    found = results.gather([tmp_path])
    assert (found.labels, [gap.label for gap in found.gaps]) == (("om2p",), ["om2p, eta=5.0"])


def test_only_complete_methods_are_compared(tmp_path):
    for tier in ("medium", "expert"):
        write_run(tmp_path / f"bc-{tier}", "bc", tier=tier)
        write_run(tmp_path / f"fql-{tier}", "ma-fql", tier=tier)
    write_run(tmp_path / "om2p", "om2p")
    both = results.gather([tmp_path]).compared()  # 2 methods x 2 data sets rather than 3 x 1
    assert both.methods == ["bc", "ma-fql"]
    assert len(both.datasets) == 2
    one = results.gather([tmp_path / "om2p", tmp_path / "bc-medium", tmp_path / "bc-expert"]).compared()
    assert sorted(one.methods) == ["bc", "om2p"]  # with bc alone on all data sets, what both have is compared
    assert one.datasets == ["om2p/cooperative-navigation/medium-v0"]
    assert results.gather([tmp_path / "om2p"]).compared() is None


def test_as_much_as_can_be_is_compared(tmp_path):
    """Three methods on three data sets, beside one that has all four and one that has a single one."""
    for tier in ("medium-replay", "medium", "medium-expert", "expert"):
        write_run(tmp_path / f"bc-{tier}", "bc", tier=tier)
    for tier in ("medium", "medium-expert", "expert"):
        write_run(tmp_path / f"fql-{tier}", "ma-fql", tier=tier)
        write_run(tmp_path / f"om2p-{tier}", "om2p", tier=tier)
    write_run(tmp_path / "omar", "omar")
    block = results.gather([tmp_path]).compared()
    assert sorted(block.methods) == ["bc", "ma-fql", "om2p"]
    assert [dataset.split("/")[2] for dataset in block.datasets] == ["medium-v0", "medium-expert-v0", "expert-v0"]


def test_what_a_reader_must_know_is_noted(tmp_path):
    write_run(tmp_path / "a", "bc")
    write_run(tmp_path / "b", "om2p", versions={"om2p": "0.0.9"}, returns=((1.0, 2.0),))
    write_run(tmp_path / "c", "ma-fql", scale=Scale.PAPER)
    assert results.gather([tmp_path]).notes() == [
        "these runs were made by different versions of om2p: 0.0.9 (1 runs), 0.1.0 (2 runs)",
        "runs of different scales stand beside each other",
        "om2p/cooperative-navigation/medium-v0: methods have different numbers of seeds (2, 3), updates (100, 200)",
        "2 seeds are few: the bootstrap interval of a single data set then holds the true mean about 50% of the time, "
        "not 95%; one over several data sets is too narrow as well, by a factor of 0.71",
    ]
    assert results.gather([write_run(tmp_path / "d", returns=((1.0,),))]).notes() == [
        "a run of one seed has no interval, and tells nothing apart"
    ]


def test_runs_on_other_contents_do_not_stand_beside_each_other(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", "om2p", dataset_hash="other")
    with pytest.raises(UserError, match=r"content hashes differ\): report them apart"):
        results.gather([tmp_path])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": None}, r"the run in .* is damaged: ValidationError: seeds: Input should be"),
        ({"timing": None}, r"the run in .* is damaged: ValidationError: timing: "),
        ({"versions": None}, r"the run in .* is damaged: ValidationError: versions: "),
        ({"dataset_card": {"policies": [{}]}}, r"is damaged: ValidationError: dataset_card\.policies\.0\.name: "),
        ({"recipe": {}}, r"the run in .* is damaged: KeyError"),
        (
            {"versions": {"om2p": "9.9"}, "recipe": {}},
            r"was written by om2p 9\.9 and cannot be read by 0\.1\.0 .*again",
        ),
    ],
)
def test_damage_is_one_line(tmp_path, changes, message):
    folder = write_run(tmp_path / "bc")
    facts = json.loads((folder / "run.json").read_text()) | changes
    (folder / "run.json").write_text(json.dumps(facts))
    for place in (folder, tmp_path):
        with pytest.raises(UserError, match=message):
            results.gather([place])


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (-1, "lacks episodes of update 200"),
        (-2, "lacks episodes of update 200"),  # a whole seed
        (-6, "does not reach update 200"),
        (1, "does not reach update 200"),
    ],
)
def test_evaluations_that_are_cut_short_are_damage(tmp_path, left, message):
    path = write_run(tmp_path / "bc") / "evaluations.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:left]))
    with pytest.raises(UserError, match=f"is damaged: ValueError: evaluations.csv {message}"):
        results.gather([tmp_path / "bc"])


def test_returns_that_are_no_numbers_are_damage(tmp_path):
    with pytest.raises(UserError, match="holds a return that is no number"):
        results.read(write_run(tmp_path / "bc", returns=((1.0, float("nan")),)))


def test_below_a_folder_damage_is_noted_and_the_rest_is_shown(tmp_path):
    write_run(tmp_path / "a")
    (write_run(tmp_path / "b", "om2p") / "run.json").write_text("{")
    found = results.gather([tmp_path])
    assert found.methods == ["bc"]
    assert found.notes()[0].startswith(f"left out: the run in {tmp_path / 'b'} is damaged: JSONDecodeError")
    (tmp_path / "a" / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"none of these runs can be reported: the run in .* is damaged"):
        results.gather([tmp_path])


def test_a_missing_file_is_one_line(tmp_path):
    (write_run(tmp_path / "bc") / "evaluations.csv").unlink()
    with pytest.raises(UserError, match="is damaged: FileNotFoundError"):
        results.gather([tmp_path])
