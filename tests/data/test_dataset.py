"""Data sets on disk. The oracle is stock Minari: what it reads back must be what was written."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from minari import cli as minari_cli
from minari.data_collector import EpisodeBuffer
from minari.namespace import list_local_namespaces
from typer.testing import CliRunner

from om2p_data import columns, dataset, hdf5, storage
from om2p_data.dataset import BehaviorPolicy, Dataset
from om2p_data.envs.registry import Task, find
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.spec import EnvironmentCard

CN, HC = find("cn"), find("hc")
CN_ID, HC_ID = "om2p/cooperative-navigation/medium-replay-v0", "om2p/halfcheetah-2x3/medium-replay-v0"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.setenv("COLUMNS", "200")  # Minari's tables are cut to the terminal
    return tmp_path / "datasets"


def random_episodes(task: Task, lengths: list[int], seed: int = 0) -> Episodes:
    """Random values; odd episodes terminate, even ones run into a limit."""
    rng = np.random.default_rng(seed)
    steps, rows, agents = sum(lengths), sum(lengths) + len(lengths), task.num_agents
    last = np.cumsum(lengths) - 1
    terminated, truncated = np.zeros((2, steps, agents), dtype=bool)
    terminated[last[1::2]] = truncated[last[::2]] = True
    return Episodes(
        obs=rng.standard_normal((rows, agents, task.obs_dim), dtype=np.float32),
        actions=rng.uniform(-1, 1, (steps, agents, task.act_dim)).astype(np.float32),
        rewards=rng.standard_normal((steps, agents), dtype=np.float32),
        terminated=terminated,
        truncated=truncated,
        state=rng.standard_normal((rows, task.state_dim), dtype=np.float32) if task.store_state else None,
        lengths=np.array(lengths, dtype=np.int64),
        policy=(np.arange(len(lengths)) % 2).astype(np.int32),
        seed=np.arange(len(lengths), dtype=np.int64) + 2**40,
    )


card = EnvironmentCard.of
MULTI_AGENT = {"state": None, "state_dim": None, "agents_end_together": True, "horizon": 25}
CN_EPISODES = random_episodes(CN, [25, 3, 25, 1, 25, 25, 7])
HC_EPISODES = random_episodes(HC, [1000, 400, 950])  # 1,001 states are more than fit into an object header


def policies_of(episodes: Episodes) -> list[BehaviorPolicy]:
    counts = np.bincount(episodes.policy)
    return [
        BehaviorPolicy("replay", "matd3", step, 7, "ab" * 32, 1.5, 0.5, int(count)) for step, count in enumerate(counts)
    ]


def write(dataset_id: str = CN_ID, episodes: Episodes = CN_EPISODES, **changes: Any) -> Path:
    parts = storage.parse_id(dataset_id)
    settings: dict[str, Any] = {
        "environment": card(find(parts.task)),
        "policies": policies_of(episodes),
        "collection": {"seeds": [1, 2], "recipe": {"noise": 0.1}},
        "tier_sources": [{"id": "om2p/cooperative-navigation/expert-v0", "hash": "cd" * 32, "episodes": 7}],
        "progress": False,
    }
    return dataset.write(dataset_id, episodes, **(settings | changes))


def stock_run(*arguments: str) -> str:
    result = CliRunner().invoke(minari_cli.app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def assert_same(found: Episodes, expected: Episodes) -> None:
    assert found.arrays().keys() == expected.arrays().keys()
    for name, array in expected.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], array, err_msg=name, strict=True)


# What stock Minari makes of our files


@pytest.mark.parametrize(("dataset_id", "episodes"), [(CN_ID, CN_EPISODES), (HC_ID, HC_EPISODES)])
def test_stock_minari_reads_every_field(dataset_id: str, episodes: Episodes) -> None:
    write(dataset_id, episodes)
    stock = minari.load_dataset(dataset_id)
    agents = find(storage.parse_id(dataset_id).task).agents
    assert (stock.total_episodes, stock.total_steps) == (episodes.num_episodes, episodes.num_transitions)
    attributes = list(stock.storage.get_episode_metadata(range(stock.total_episodes)))
    for e, (episode, attribute) in enumerate(zip(stock, attributes, strict=True)):
        length = episodes.lengths[e]
        first, row = episodes.transition_start[e], episodes.episode_start[e]
        steps, rows = slice(first, first + length), slice(row, row + length + 1)
        assert list(episode.observations) == list(episode.actions) == list(agents)
        for index, agent in enumerate(agents):
            np.testing.assert_array_equal(episode.observations[agent], episodes.obs[rows, index], strict=True)
            np.testing.assert_array_equal(episode.actions[agent], episodes.actions[steps, index], strict=True)
            assert stock.observation_space[agent].contains(episode.observations[agent][-1])
            assert stock.action_space[agent].contains(episode.actions[agent][0])
        agent_rewards = episode.infos["agent_rewards"]
        np.testing.assert_array_equal(agent_rewards[1:], episodes.rewards[steps], strict=True)
        assert not agent_rewards[0].any()
        np.testing.assert_allclose(episode.rewards, agent_rewards[1:].mean(axis=1), rtol=1e-6, atol=1e-7)
        assert episode.rewards.dtype == np.float32
        np.testing.assert_array_equal(episode.terminations, episodes.terminated[steps, 0], strict=True)
        np.testing.assert_array_equal(episode.truncations, episodes.truncated[steps, 0], strict=True)
        expected_infos = {"agent_rewards"} if episodes.state is None else {"agent_rewards", "state"}
        assert set(episode.infos) == expected_infos
        if episodes.state is not None:
            np.testing.assert_array_equal(episode.infos["state"], episodes.state[rows], strict=True)
        assert attribute == {
            "id": e,
            "total_steps": length,
            "seed": 2**40 + e,
            "policy": "replay",
            "policy_step": e % 2,
            "return_team": pytest.approx(float(episode.rewards.sum(dtype=np.float64))),
        }
        assert isinstance(attribute["policy"], str)


def test_stock_minari_samples_filters_splits_and_combines() -> None:
    write()
    write("om2p/cooperative-navigation/expert-v0", CN_EPISODES.select([1, 2]))
    stock = minari.load_dataset(CN_ID)
    lengths = CN_EPISODES.lengths
    assert sorted(len(episode) for episode in stock.sample_episodes(7)) == sorted(lengths)
    assert np.array_equal(stock[3].observations["agent_1"], CN_EPISODES.obs[56:58, 1])
    terminated = stock.filter_episodes(lambda episode: bool(episode.terminations[-1]))
    assert terminated.episode_indices.tolist() == [1, 3, 5]
    assert terminated.total_steps == lengths[[1, 3, 5]].sum()
    halves = minari.split_dataset(stock, sizes=[4, 3], seed=0)
    assert sorted(np.concatenate([half.episode_indices for half in halves])) == list(range(7))
    other = minari.load_dataset("om2p/cooperative-navigation/expert-v0")
    combined = minari.combine_datasets([stock, other], "om2p/cooperative-navigation/combined-v0")
    assert combined.total_episodes == 9
    for index, source in ((6, stock[6]), (8, other[1])):
        np.testing.assert_array_equal(combined[index].observations["agent_2"], source.observations["agent_2"])
        np.testing.assert_array_equal(combined[index].infos["agent_rewards"], source.infos["agent_rewards"])
    scores = minari.get_normalized_score(stock, np.array([159.8, 516.8]))
    assert scores.tolist() == [0.0, 1.0]


def test_stock_minari_appends() -> None:
    write()
    stock = minari.load_dataset(CN_ID)
    first = stock[0]
    fields = ("observations", "actions", "rewards", "terminations", "truncations", "infos")
    stock.update_dataset_from_buffer([EpisodeBuffer(**{field: getattr(first, field) for field in fields})])
    again = minari.load_dataset(CN_ID)
    assert again.total_episodes == 8
    np.testing.assert_array_equal(again[7].observations["agent_0"], first.observations["agent_0"])
    np.testing.assert_array_equal(again[6].actions["agent_0"], CN_EPISODES.actions[-7:, 0])
    with pytest.raises(UserError, match=r"main_data\.hdf5"):
        dataset.load(CN_ID)  # what was appended says nothing of its policy or seed


def test_stock_command_line() -> None:
    write()
    write(HC_ID, HC_EPISODES)
    listing = stock_run("list", "local")
    assert CN_ID in listing
    assert HC_ID in listing
    shown = stock_run("show", CN_ID)
    assert "om2p_data.envs.adapters:TeamEnv" in shown
    assert "matd3" in shown
    assert list_local_namespaces() == ["om2p", "om2p/cooperative-navigation", "om2p/halfcheetah-2x3"]


@pytest.mark.parametrize("dataset_id", [CN_ID, HC_ID])
def test_stock_minari_recovers_the_environment(dataset_id: str) -> None:
    write(dataset_id, CN_EPISODES if dataset_id == CN_ID else HC_EPISODES)
    stock = minari.load_dataset(dataset_id)
    env = stock.recover_environment()
    assert env.observation_space == stock.observation_space
    assert env.action_space == stock.action_space
    obs, _ = env.reset(seed=0)
    assert list(obs) == list(find(storage.parse_id(dataset_id).task).agents)
    _, reward, *_ = env.step(stock[0].actions | {agent: action[0] for agent, action in stock[0].actions.items()})
    assert np.isfinite(float(reward))
    env.close()


def test_metadata() -> None:
    folder = write()
    metadata = json.loads((folder / "data" / "metadata.json").read_text(), parse_constant=pytest.fail)  # strict JSON
    assert metadata["dataset_size"] == round((folder / "data" / "main_data.hdf5").stat().st_size / 1e6, 1)
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (159.8, 516.8)
    assert (metadata["om2p_schema"], metadata["tier"]) == ("1.0", "medium-replay")
    assert metadata["multi_agent"]["agents"] == list(CN.agents)
    assert metadata["multi_agent"]["state"] is None
    assert metadata["behaviour_policies"][1] == dataclasses.asdict(policies_of(CN_EPISODES)[1])
    assert metadata["collection"] == {"seeds": [1, 2], "recipe": {"noise": 0.1}}
    assert metadata["tier_sources"][0]["episodes"] == 7
    figures = metadata["statistics"]["team_return"]
    returns = [float(episode.rewards.sum(dtype=np.float64)) for episode in minari.load_dataset(CN_ID)]
    assert figures["mean"] == pytest.approx(np.mean(returns))
    assert figures["std"] == pytest.approx(np.std(returns))
    assert (figures["min"], figures["max"]) == pytest.approx((min(returns), max(returns)))
    assert figures["quantiles"]["0.5"] == pytest.approx(np.median(returns))
    assert metadata["statistics"]["episode_length"]["min"] == 1


def test_agents_that_leave_early(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {name: array.copy() for name, array in CN_EPISODES.select([0, 1, 2]).arrays().items()}
    arrays["terminated"][9, 2] = True  # agent 2 leaves in step 9 of 25
    arrays["obs"][11:26, 2], arrays["actions"][10:25, 2], arrays["rewards"][10:25, 2] = 0, 0, 0
    arrays["truncated"][24, 2] = False
    episodes = Episodes.from_arrays(arrays)
    folder = write(episodes=episodes)
    infos = minari.load_dataset(CN_ID)[0].infos
    assert infos["agent_terminations"].nonzero()[0].tolist() == [10]
    assert infos["agent_truncations"][-1].tolist() == [True, True, False]
    assert infos["agent_mask"][:, 2].tolist() == [True] * 11 + [False] * 15
    assert infos["agent_mask"][:, :2].all()
    shutil.rmtree(folder / "flat")
    assert_same(dataset.load(CN_ID).episodes, episodes)


# Our own way back


@pytest.mark.parametrize(("dataset_id", "episodes"), [(CN_ID, CN_EPISODES), (HC_ID, HC_EPISODES)])
def test_columns_come_back_and_are_rebuilt(dataset_id: str, episodes: Episodes, capsys: pytest.CaptureFixture) -> None:
    folder = write(dataset_id, episodes)
    warm = dataset.load(dataset_id)
    assert capsys.readouterr().err == ""
    assert_same(warm.episodes, episodes)
    assert warm.task is find(storage.parse_id(dataset_id).task)
    assert warm.policies == tuple(policies_of(episodes))
    assert warm.metadata["content_hash"] == episodes.content_hash()
    shutil.rmtree(folder / "flat")
    rebuilt = dataset.load(dataset_id)
    assert capsys.readouterr().err == f"{dataset_id}: building the flat columns from main_data.hdf5 (once)\n"
    assert_same(rebuilt.episodes, episodes)
    for opened in (warm, rebuilt):
        for name, array in opened.episodes.arrays().items():
            assert isinstance(array.base, np.memmap), name
            assert not array.flags.writeable, name
    dataset.load(dataset_id)
    assert capsys.readouterr().err == ""


def damage_manifest(flat: Path) -> None:
    manifest = json.loads((flat / "manifest.json").read_text())
    (flat / "manifest.json").write_text(json.dumps(manifest | {"content_hash": "00" * 32}))


def damage_other_shape(flat: Path) -> None:
    np.save(flat / "rewards.npy", np.zeros((3, 3), dtype=np.float32))


def damage_pickle(flat: Path) -> None:
    np.save(flat / "seed.npy", np.array([{}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    "damage",
    [
        damage_manifest,
        damage_other_shape,
        damage_pickle,
        lambda flat: os.truncate(flat / "obs.npy", 1000),
        lambda flat: (flat / "actions.npy").unlink(),
        lambda flat: (flat / "manifest.json").write_text("[1]"),
    ],
)
def test_columns_of_other_data_are_not_used(damage, capsys: pytest.CaptureFixture) -> None:
    folder = write()
    damage(folder / "flat")
    assert_same(dataset.load(CN_ID).episodes, CN_EPISODES)
    assert "building the flat columns" in capsys.readouterr().err


def test_columns_stay_in_memory_where_they_cannot_be_kept(capsys: pytest.CaptureFixture) -> None:
    folder = write()
    shutil.rmtree(folder / "flat")
    (folder / ".flat.partial").write_text("in the way, as a read-only folder is")
    episodes = dataset.load(CN_ID).episodes
    assert "holding them in memory" in capsys.readouterr().err
    assert_same(episodes, CN_EPISODES)
    assert not episodes.obs.flags.writeable


def test_no_transition_crosses_an_episode() -> None:
    obs = CN_EPISODES.obs.copy()
    starts = CN_EPISODES.episode_start
    for e, (start, length) in enumerate(zip(starts, CN_EPISODES.lengths, strict=True)):
        obs[start : start + length + 1] = e
    folder = write(episodes=dataclasses.replace(CN_EPISODES, obs=obs))
    shutil.rmtree(folder / "flat")
    found = dataset.load(CN_ID).episodes
    np.testing.assert_array_equal(found.obs[found.obs_index], found.obs[found.obs_index + 1])


def test_more_lengths_than_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes are made from templates, one for each length, which are dropped and made anew when they grow large."""
    monkeypatch.setattr(hdf5, "_TEMPLATE_BYTES", 20_000)
    episodes = random_episodes(CN, [*range(1, 26), 7, *range(25, 0, -1), 7])
    folder = write(episodes=episodes)
    shutil.rmtree(folder / "flat")
    assert_same(dataset.load(CN_ID).episodes, episodes)


def test_agents_keep_their_order(tmp_path: Path) -> None:
    task = dataclasses.replace(CN, agents=tuple(f"agent_{i}" for i in range(11)))  # "agent_10" sorts before "agent_2"
    episodes, path = random_episodes(task, [4, 2]), tmp_path / "many.hdf5"
    spec = card(task).spec
    hdf5.write_episodes(path, episodes, spec, [("a", 0), ("b", 0)], progress=False)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["episode_0/actions/agent_10"], episodes.actions[:4, 10])
        group = file["episode_0/observations"]
        assert isinstance(group, h5py.Group)
        assert list(group) == list(task.agents)
    layout = hdf5.Layout(spec, (("a", 0), ("b", 0)), num_episodes=2, num_transitions=6, agents_end_together=True)
    found = hdf5.read_episodes(path, layout, progress=False)
    assert_same(found, episodes)


def test_same_data_same_hash() -> None:
    def hash_of(episodes: Episodes) -> str:
        write(episodes=episodes, overwrite=True, collection={"when": time.time()})
        return dataset.load(CN_ID).metadata["content_hash"]

    first = hash_of(CN_EPISODES)
    assert hash_of(random_episodes(CN, [25, 3, 25, 1, 25, 25, 7])) == first
    assert hash_of(random_episodes(CN, [25, 3, 25, 1, 25, 25, 7], seed=1)) != first


def test_listing_survives_broken_neighbours(root: Path, capsys: pytest.CaptureFixture) -> None:
    assert dataset.list_datasets() == []
    write()
    write("om2p/cooperative-navigation/medium-replay-v10", CN_EPISODES.select([0, 1]))
    write("om2p/cooperative-navigation/medium-replay-v2", CN_EPISODES.select([0, 1]))
    for name, text in (("broken-v0", "{"), ("foreign-v0", "{}"), ("headless-v0", '{"om2p_schema": "1.0"}')):
        (root / "om2p" / "world" / name / "data").mkdir(parents=True)
        (root / "om2p" / "world" / name / "data" / "metadata.json").write_text(text)
    (root / "om2p" / "world" / "empty-v0").mkdir()
    (root / "om2p" / "world" / "a-file-v0").touch()
    found = dataset.list_datasets()
    assert [summary.id.rpartition("-")[2] for summary in found] == ["v0", "v2", "v10"]
    assert (found[0].episodes, found[0].transitions) == (7, 111)
    assert found[0].return_mean == pytest.approx(CN_EPISODES.team_returns.mean())
    assert sum(line.startswith("left out om2p/world/") for line in capsys.readouterr().err.splitlines()) == 3
    elsewhere = root.parent / "elsewhere"
    write(root=elsewhere)
    assert len(dataset.list_datasets(elsewhere)) == 1
    assert dataset.load(CN_ID, root=elsewhere).episodes.num_episodes == 7


# Complete or not there


def test_killed_writing_leaves_nothing(root: Path) -> None:
    """kill -9 as soon as a good part of the HDF5 file is on the disk."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_dataset as t\n"
        "t.write(episodes=t.random_episodes(t.CN, [25] * 20_000))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(Path(__file__).parent)])
    partial = root / "om2p" / "cooperative-navigation" / ".medium-replay-v0.partial"
    try:
        deadline = time.monotonic() + 60
        file = partial / "data" / "main_data.hdf5"
        while not (file.exists() and file.stat().st_size > 2_000_000):
            assert child.poll() is None, "the writer ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert partial.exists()
    assert not (root / CN_ID).exists()
    assert dataset.list_datasets() == []
    assert CN_ID not in stock_run("list", "local")
    with pytest.raises(UserError, match="no data set"):
        dataset.load(CN_ID)
    write()  # removes what was left
    assert not partial.exists()
    assert CN_ID in stock_run("list", "local")
    assert_same(dataset.load(CN_ID).episodes, CN_EPISODES)


def test_stock_minari_ignores_a_partial_folder(root: Path) -> None:
    write()
    shutil.copytree(root / CN_ID, root / "om2p" / "cooperative-navigation" / ".expert-v0.partial")
    assert list(minari.list_local_datasets()) == [CN_ID]
    assert "expert" not in stock_run("list", "local")
    assert [summary.id for summary in dataset.list_datasets()] == [CN_ID]


def test_overwriting_keeps_the_old_set_until_the_new_one_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write()
    with pytest.raises(UserError, match=r"exists already .*: overwrite it or write .*medium-replay-v1$"):
        write()
    with pytest.raises(UserError, match="exists already"):
        dataset.ensure_free(CN_ID)
    dataset.ensure_free(CN_ID, overwrite=True)
    dataset.ensure_free(CN_ID.replace("v0", "v1"))

    def full_disk(*_: Any) -> None:
        assert dataset.load(CN_ID).episodes.num_episodes == 7
        raise OSError(28, "")

    with monkeypatch.context() as patch:
        patch.setattr(columns, "save", full_disk)
        with pytest.raises(UserError, match=f"cannot write {CN_ID} .*: No space left on device"):
            write(episodes=CN_EPISODES.select([0, 1]), overwrite=True)
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    assert dataset.load(CN_ID).episodes.num_episodes == 7
    write(episodes=CN_EPISODES.select([0, 1]), overwrite=True)
    assert dataset.load(CN_ID).episodes.num_episodes == 2
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("partial", [True, False])
def test_a_swap_that_was_killed_halfway_is_undone(partial: bool) -> None:
    folder = write()
    if partial:
        shutil.copytree(folder, folder.with_name(f".{folder.name}.partial"))
    folder.rename(folder.with_name(f".{folder.name}.replaced"))
    assert dataset.load(CN_ID).episodes.num_episodes == 7


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits there")
def test_a_file_that_cannot_grow(root: Path) -> None:
    """A limit on the file size fails in the middle of HDF5's writing, as a full disk does."""
    import resource

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(UserError, match=f"cannot write {CN_ID} .*: File too large$"):
            write(episodes=random_episodes(CN, [25] * 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert [path.name for path in (root / "om2p" / "cooperative-navigation").iterdir()] == ["namespace_metadata.json"]
    write()


def test_too_little_space_is_told_before_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=rf"not enough space for {CN_ID} .* 0 MB are free"):
        write()
    layout = hdf5.Layout(card(CN).spec, (), num_episodes=40, num_transitions=1_000, agents_end_together=True)
    with pytest.raises(UserError, match=r"it takes about 1 MB, 0 MB are free"):
        dataset.ensure_free(CN_ID, expected=layout)


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no locks there")
def test_two_writers_of_one_id(root: Path) -> None:
    folder = root / CN_ID
    folder.parent.mkdir(parents=True)
    with storage.replacing(folder) as partial:
        (partial / "data").mkdir()
        with pytest.raises(UserError, match="is being written by another process"):
            write()
        assert partial.exists()


# One line that says what is wrong


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_id": "om2p//medium-v0"}, r"malformed data set id .* ids read <namespace>/<task>/<tier>-v<N>"),
        (
            {"dataset_id": "cooperative-navigation/medium-v0"},
            "must read <namespace>/cooperative-navigation/<tier>-v<N>",
        ),
        ({"dataset_id": "om2p/cooperative-navigation/x-v0"}, "malformed"),
        ({"dataset_id": "om2p/cooperative-navigation/expert"}, "malformed"),
        ({"dataset_id": "om2p/cooperative-navigation/expert-v01"}, "malformed"),
        ({"dataset_id": "om2p/../expert-v0"}, "malformed"),
        ({"environment": card(HC)}, "must read <namespace>/halfcheetah-2x3/<tier>-v<N>"),
        ({"dataset_id": "om2p/world/expert-v0", "environment": card(find("world"))}, r"obs has rows of \(3, 18\)"),
        ({"policies": policies_of(CN_EPISODES)[:1]}, "policy holds index 1, but 1 policies are given"),
        ({"policies": policies_of(CN_EPISODES)[:1] * 2}, "two behaviour policies have the same name and step"),
        ({"policies": policies_of(CN_EPISODES.select([0, 1]))}, "'replay' claims 1 episodes, the data hold 4"),
        ({"collection": {"seed": np.int64(3)}}, "must be plain JSON values: .*int64"),
        ({"collection": {"loss": float("nan")}}, "must be plain JSON values"),
        ({"root": "/dev/null"}, "/dev/null is not a folder that you may write to"),
    ],
)
def test_writing_what_cannot_be_written(changes: dict[str, Any], message: str, root: Path) -> None:
    settings = {"dataset_id": CN_ID, "environment": card(CN)} | changes
    with pytest.raises(UserError, match=message) as caught:
        write(**settings)
    assert "\n" not in str(caught.value)
    assert not list(root.rglob("*.hdf5"))


def test_unknown_ids_offer_the_nearest_and_the_command() -> None:
    write()
    with pytest.raises(UserError) as caught:
        dataset.load("om2p/cooperative-navigation/medium-replai-v0")
    message = str(caught.value)
    assert f"did you mean {CN_ID}?" in message
    assert message.endswith("run: om2p-data generate --env cooperative-navigation --tier medium-replai")
    with pytest.raises(UserError, match="malformed"):
        dataset.load("cooperative-navigation")


def edit_metadata(folder: Path, **changes: Any) -> None:
    path = folder / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def resize_an_array(folder: Path) -> None:
    """Longer than what stands beside it: reading it must not run over the buffer."""
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_2/actions/agent_1"]
        file.create_dataset("episode_2/actions/agent_1", data=np.zeros((5000, 2), dtype=np.float32))


def widen_an_attribute(folder: Path) -> None:
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file["episode_2"].attrs["seed"] = np.arange(1000)


def change_a_value(folder: Path) -> None:
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        array = file["episode_2/actions/agent_1"]
        assert isinstance(array, h5py.Dataset)
        array[3, 0] = 0.125


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "data" / "main_data.hdf5").unlink(), r"main_data\.hdf5 is missing"),
        (lambda f: (f / "data" / "metadata.json").unlink(), r"metadata\.json cannot be read: No such file"),
        (lambda f: (f / "data" / "metadata.json").write_text('{"om2p'), r"metadata\.json is damaged"),
        (lambda f: (f / "data" / "metadata.json").write_bytes(b"\xff"), r"metadata\.json is damaged"),
        (lambda f: edit_metadata(f, om2p_schema="9.0"), r"metadata\.json has om2p_schema '9\.0'"),
        (lambda f: edit_metadata(f, dataset_id="om2p/world/expert-v0"), "belongs to 'om2p/world/expert-v0'"),
        (lambda f: edit_metadata(f, observation_space="{"), "is damaged"),
        (
            lambda f: edit_metadata(f, multi_agent=MULTI_AGENT | {"agents": ["a", "b"]}),
            "no Dict with one space for each",
        ),
        (lambda f: edit_metadata(f, multi_agent={}), "is damaged: key 'agents' is missing"),
        (lambda f: edit_metadata(f, behaviour_policies=[{"age": 3}]), "metadata.json is damaged"),
        (lambda f: edit_metadata(f, behaviour_policies=[]), "behaviour_policies is empty"),
        (lambda f: edit_metadata(f, total_episodes=8), "holds 7 episodes, the metadata states 8"),
        (lambda f: edit_metadata(f, total_episodes="7"), "total_episodes is '7'"),
        (lambda f: edit_metadata(f, total_steps=100), "does not hold the 100 steps"),
        (lambda f: edit_metadata(f, total_steps=112), "does not hold the 112 steps"),
        (lambda f: edit_metadata(f, total_steps=10**15), r"main_data\.hdf5"),
        (lambda f: os.truncate(f / "data" / "main_data.hdf5", 20_000), r"main_data\.hdf5 is damaged"),
        (lambda f: (f / "data" / "main_data.hdf5").write_text("no"), r"main_data\.hdf5 is damaged"),
        (resize_an_array, r"main_data\.hdf5 is damaged"),
        (widen_an_attribute, "is damaged .* attribute seed is not a single value"),
        (change_a_value, r"main_data\.hdf5 was changed after it was written"),
    ],
)
def test_damaged_files_are_named(damage, message: str) -> None:
    folder = write()
    shutil.rmtree(folder / "flat")
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        dataset.load(CN_ID)
    assert "\n" not in str(caught.value)


def test_a_copied_folder_just_works(root: Path) -> None:
    write()
    other = root.parent / "copied"
    shutil.copytree(root, other)
    shutil.rmtree(root)
    copied: Dataset = dataset.load(CN_ID, root=str(other))
    assert_same(copied.episodes, CN_EPISODES)
    assert copied.id == CN_ID
