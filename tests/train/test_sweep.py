"""Job lists: what a file expands to, and what is left of it after a look at the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from om2p_data.errors import UserError
from om2p_train import sweep
from om2p_train.sweep import DataJob, State, TrainJob

from ..docs.pages import file_in

CN = 'tasks = ["cn"]\ntiers = ["medium"]\nalgorithms = ["bc"]\nseeds = [0, 1]\n'


def written(tmp_path: Path, text: str = CN) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def expanded(tmp_path: Path, text: str = CN) -> list[sweep.Job]:
    return sweep.jobs(sweep.read(written(tmp_path, text)), tmp_path / "out", tmp_path, tmp_path / "data")


def test_every_combination_is_one_cell_and_every_data_set_one_job(tmp_path):
    text = """
        tasks = ["cn", "halfcheetah-2x3"]
        tiers = ["medium", "expert"]
        algorithms = ["bc", "om2p", "ma-fql"]
        seeds = [0, 1, 2]
        transitions = 5000
        [variants]
        short = ["run.updates=100"]
        long = ["run.updates=200"]
    """
    jobs = expanded(tmp_path, text)
    data = [job for job in jobs if isinstance(job, DataJob)]
    cells = [job for job in jobs if isinstance(job, TrainJob)]
    assert [job.dataset_id for job in data] == [
        f"om2p/{task}/{tier}-v0"
        for task in ("cooperative-navigation", "halfcheetah-2x3")
        for tier in ("medium", "expert")
    ]
    assert len(cells) == 2 * 2 * 3 * 2
    assert len({job.folder for job in cells}) == len(cells)
    assert jobs.index(cells[0]) > jobs.index(data[-1])
    assert {job.needs for job in cells} == {(job.name,) for job in data}
    assert cells[0].label == "bc, short"
    assert cells[0].command == (
        "om2p-train run --dataset om2p/cooperative-navigation/medium-v0 --algo bc --seeds 0,1,2 --scale cpu "
        f"--device cpu --set run.updates=100 --out {cells[0].folder} --resume --quiet --no-tensorboard "
        f"--root {tmp_path / 'data'}"
    )
    assert data[0].command == (
        f"om2p-data generate --env cn --tier medium --seed 0 --quiet --transitions 5000 --root {tmp_path / 'data'}"
    )


@pytest.mark.parametrize(
    ("more", "same"),
    [
        ("", True),
        ('settings = ["options.eta=1.0"]\n', False),
        ('settings = ["network.hidden=[8]"]\n', False),
        ('scale = "paper"\n', False),
        ('device = "cuda"\n', False),
        ("transitions = 1000\n", False),
        ("data_seed = 1\n", False),
        ("version = 1\n", False),
    ],
)
def test_a_folder_is_named_by_what_decides_the_result(tmp_path, more, same):
    text = CN.replace("bc", "om2p")
    found = expanded(tmp_path, text + more)[-1]
    assert isinstance(found, TrainJob)
    expected = expanded(tmp_path, text)[-1]
    assert (found.name == expected.name) is same


def test_names_of_variants_and_the_order_of_cells_do_not_change_a_folder(tmp_path):
    one = expanded(tmp_path, CN + '[variants]\na = ["run.updates=7"]\n')[-1]
    two = expanded(tmp_path, CN.replace('["bc"]', '["om2p", "bc"]') + '[variants]\nb = ["run.updates=7"]\n')[-1]
    assert isinstance(one, TrainJob)
    assert isinstance(two, TrainJob)
    assert one.folder == two.folder == expanded(tmp_path, CN + 'settings = ["run.updates=7"]\n')[-1].folder  # pyright: ignore[reportAttributeAccessIssue]


def test_a_replay_memory_is_as_long_as_it_is(tmp_path):
    text = CN.replace('["medium"]', '["medium", "medium-replay"]') + "transitions = 100\n"
    assert ["--transitions" in job.arguments for job in expanded(tmp_path, text)[:2]] == [True, False]


def test_a_recipe_file_beside_the_sweep(tmp_path):
    (tmp_path / "own.toml").write_text('base = "bc"\n[run]\nupdates = 3\n')
    job = expanded(tmp_path, CN.replace('"bc"', '"own.toml"'))[-1]
    assert isinstance(job, TrainJob)
    assert job.algorithm == str(tmp_path / "own.toml")
    assert job.label == "own"


def test_nothing_is_done_at_first(tmp_path):
    assert [job.state() for job in expanded(tmp_path)] == [State.WAITING, State.WAITING]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (CN + "sceds = 1\n", r"mine\.toml: .*'sceds'"),
        (CN.replace('"cn"', '"moon"'), "'moon'"),
        (CN.replace('"medium"', '"good"'), r"mine\.toml: tiers\.0 = 'good' is wrong"),
        (CN.replace('"bc"', '"best"'), "'best'"),
        (CN.replace("[0, 1]", "[0, 0]"), "seeds names something twice"),
        (CN.replace("[0, 1]", "[]"), "seeds = .* is wrong"),
        (CN.replace("[0, 1]", "[-1]"), r"seeds\.0 = -1 is wrong"),
        (CN + 'settings = ["run.updats=5"]\n', "run.updats"),
        (CN + 'device = "tpu"\n', "device = 'tpu' is wrong"),
        (CN + '[variants]\na = ["run.updates=5"]\nb = ["run.updates=5"]\n', "'bc, a' and 'bc, b' .* are the same run"),
        ("tasks = [\n", "is not valid TOML"),
        ("", "key 'tasks' is missing"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path, text, line):
    with pytest.raises(UserError, match=line) as caught:
        expanded(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the sweep .*none\.toml"):
        sweep.read(tmp_path / "none.toml")


def test_the_documented_file_expands(tmp_path):
    jobs = expanded(tmp_path, file_in("docs/runs.md", "mine.toml"))
    assert sum(isinstance(job, TrainJob) for job in jobs) == 2 * 2 * 2 * 2
