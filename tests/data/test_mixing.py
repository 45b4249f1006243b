"""Mixes of data sets: whole episodes by shares of the transitions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
from typer.testing import CliRunner

from cli.data import app
from om2p_data import dataset, mixing
from om2p_data.dataset import BehaviorPolicy
from om2p_data.envs.registry import find
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError

from .test_any_team import Foreign, stock_dataset
from .test_dataset import CN, random_episodes, write

MEDIUM, EXPERT, MIX = (f"om2p/cooperative-navigation/{tier}-v0" for tier in ("medium", "expert", "mixed"))


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def policies_of(episodes: Episodes, names: list[str]) -> list[BehaviorPolicy]:
    described = []
    for index, name in enumerate(names):
        returns = episodes.team_returns[episodes.policy == index]
        figures = float(returns.mean()), float(returns.std())
        described.append(BehaviorPolicy(name, "matd3", 100, 7, f"{index:02x}" * 32, *figures, len(returns)))
    return described


def store(dataset_id: str, episodes: Episodes, names: list[str], **changes: Any) -> Episodes:
    write(dataset_id, episodes, policies=policies_of(episodes, names), tier_sources=[], **changes)
    return episodes


def cn_episodes(lengths: list[int], seed: int, policies: int = 1) -> Episodes:
    episodes = random_episodes(CN, lengths, seed)
    policy = (np.arange(len(lengths)) % policies).astype(np.int32)
    return dataclasses.replace(episodes, policy=policy, seed=episodes.seed + 1_000 * seed)


@pytest.fixture
def sources() -> dict[str, Episodes]:
    """1,000 medium transitions in 40 episodes of two policies, 250 expert ones in 10."""
    return {
        MEDIUM: store(MEDIUM, cn_episodes([25] * 40, seed=1, policies=2), ["early", "late"]),
        EXPERT: store(EXPERT, cn_episodes([25] * 10, seed=2), ["late"]),
    }


def origin(mixed: Episodes, sources: dict[str, Episodes]) -> list[tuple[str, int]]:
    """Data set and index that every episode was taken from, found by its seed; everything in it is compared."""
    places = {int(seed): (name, i) for name, part in sources.items() for i, seed in enumerate(part.seed)}
    found = [places[int(seed)] for seed in mixed.seed]
    for e, (name, index) in enumerate(found):
        expected, taken = sources[name].select([index]).arrays(), mixed.select([e]).arrays()
        for field in expected.keys() - {"policy"}:
            np.testing.assert_array_equal(taken[field], expected[field], err_msg=field)
    return found


@pytest.mark.parametrize(
    ("shares", "transitions", "medium", "expert"),
    [
        ({MEDIUM: 0.9, EXPERT: 0.1}, 500, 18, 2),
        ({MEDIUM: 0.9, EXPERT: None}, 500, 18, 2),
        ({EXPERT: 0.1, MEDIUM: None}, 500, 18, 2),
        ({MEDIUM: 0.5, EXPERT: 0.5}, None, 10, 10),  # the expert's 250 transitions allow 500
        ({MEDIUM: 0.8, EXPERT: 0.2}, None, 40, 10),
        ({MEDIUM: 0.9, EXPERT: 0.1}, None, 40, 5),
        ({MEDIUM: 1.0, EXPERT: 0.0}, 30, 2, 0),  # the last episode is completed
        ({MEDIUM: 1.0, EXPERT: None}, None, 40, 0),
        ({EXPERT: 1.0}, 100, 0, 4),
    ],
)
def test_shares(
    shares: dict[str, float | None], transitions: int | None, medium: int, expert: int, sources: dict[str, Episodes]
) -> None:
    mixed = mixing.mix(MIX, shares, transitions=transitions, progress=False)
    loaded = dataset.load(MIX)
    taken = origin(loaded.episodes, sources)
    assert len(set(taken)) == len(taken)  # nothing twice
    assert [sum(name == source for name, _ in taken) for source in (MEDIUM, EXPERT)] == [medium, expert]
    by_id = {part.id: part for part in mixed.parts}
    total = 25 * (medium + expert)
    for source, count in ((MEDIUM, medium), (EXPERT, expert)):
        if source not in shares:
            continue
        part = by_id[source]
        assert (part.episodes, part.transitions, part.achieved) == (count, 25 * count, 25 * count / total)
        assert part.asked == pytest.approx(shares[source] if shares[source] is not None else 25 * count / total)
        assert part.hash == sources[source].content_hash()
        if count:
            returns = sources[source].team_returns[[index for name, index in taken if name == source]]
            assert (part.return_mean, part.return_std) == pytest.approx((returns.mean(), returns.std()))
    assert minari.load_dataset(MIX).total_steps == total


def test_the_draw_is_random_and_the_seed_s(sources: dict[str, Episodes]) -> None:
    def draw(seed: int) -> list[int]:
        mixed = mixing.mix(MIX, {MEDIUM: 1.0}, transitions=250, seed=seed, overwrite=True, progress=False)
        return [index for _, index in origin(mixed.episodes, sources)]

    first = draw(0)
    assert draw(0) == first == sorted(first)
    assert draw(1) != first
    twin = store(MIX.replace("v0", "v1"), cn_episodes([25] * 40, seed=3), ["late"])
    shares = {MEDIUM: 0.5, MIX.replace("v0", "v1"): 0.5}
    mixed = mixing.mix(MIX, shares, transitions=500, overwrite=True, progress=False)
    both = origin(mixed.episodes, sources | {MIX.replace("v0", "v1"): twin})
    assert [index for _, index in both[:10]] != [index for _, index in both[10:]]  # each source has its own stream
    lengths = np.array([10, 30] * 20)
    draws = [mixing._draw(lengths, 200, np.random.default_rng(seed)) for seed in range(2_000)]
    for index in draws:
        assert (np.diff(index) > 0).all()  # nothing twice
        assert 200 <= lengths[index].sum() < 230
    counts = np.bincount(np.concatenate(draws), minlength=40)
    assert counts.min() > 0.85 * counts.mean()
    assert counts.max() < 1.15 * counts.mean()


def test_policies_and_metadata(sources: dict[str, Episodes]) -> None:
    mixing.mix(MIX, {MEDIUM: 0.8, EXPERT: 0.2}, transitions=500, seed=3, progress=False)
    loaded = dataset.load(MIX)
    names = ["early", f"late@{MEDIUM}", f"late@{EXPERT}"]
    assert [policy.name for policy in loaded.policies] == names
    for index, policy in enumerate(loaded.policies):
        own = loaded.episodes.policy == index
        returns = loaded.episodes.team_returns[own]
        assert policy.episodes == len(returns)
        assert (policy.return_mean, policy.return_std) == pytest.approx((returns.mean(), returns.std()))
        assert policy.hash == ["00", "01", "00"][index] * 32
    for e, (name, source_index) in enumerate(origin(loaded.episodes, sources)):
        expected = 2 if name == EXPERT else sources[MEDIUM].policy[source_index]
        assert loaded.episodes.policy[e] == expected
    tier_sources = loaded.metadata["tier_sources"]
    assert [source["id"] for source in tier_sources] == [MEDIUM, EXPERT]
    assert [source["transitions"] for source in tier_sources] == [400, 100]
    assert [source["episodes"] for source in tier_sources] == [16, 4]
    assert set(tier_sources[0]) == {"id", "hash", "episodes", "transitions", "return_mean", "return_std"}
    recorded = loaded.metadata["collection"]["mixing"]
    assert (recorded["seed"], recorded["transitions_requested"]) == (3, 500)
    assert [part["achieved"] for part in recorded["parts"]] == [0.8, 0.2]


def test_policies_without_episodes_are_left_out() -> None:
    store(MEDIUM, cn_episodes([5] * 4, seed=1, policies=4), ["a", "b", "c", "d"])
    mixing.mix(MIX, {MEDIUM: 1.0}, transitions=10, progress=False)
    loaded = dataset.load(MIX)
    assert len(loaded.policies) == 2
    assert sorted(loaded.episodes.policy) == [0, 1]


def test_a_mix_of_mixes(sources: dict[str, Episodes]) -> None:
    first = mixing.mix(MIX, {MEDIUM: 0.5, EXPERT: 0.5}, transitions=400, progress=False)
    assert first.repeated == 0
    again = mixing.mix(MIX.replace("v0", "v1"), {MIX: 400 / 650, EXPERT: 250 / 650}, progress=False)
    assert again.repeated == 8  # the expert's episodes in the first mix
    loaded = dataset.load(MIX.replace("v0", "v1"))
    assert loaded.metadata["collection"]["mixing"]["repeated_episodes"] == 8
    assert [policy.name for policy in loaded.policies] == ["early", f"late@{MEDIUM}", f"late@{EXPERT}", "late"]


@pytest.mark.parametrize(
    ("shares", "options", "message"),
    [
        ({MEDIUM: 0.9, EXPERT: 0.2}, {}, r"shares must sum to 1, here 1\.1"),
        ({MEDIUM: 0.5, EXPERT: 0.2}, {}, r"shares must sum to 1, here 0\.7 \(one may be left out: the rest\)"),
        ({MEDIUM: None, EXPERT: None}, {}, "one share may be left out, for the rest; here are 2"),
        ({MEDIUM: -0.1, EXPERT: 1.1}, {}, rf"share of {MEDIUM} must lie in \[0, 1\], not -0\.1"),
        ({MEDIUM: float("nan"), EXPERT: None}, {}, "must lie in"),
        ({}, {}, "name the data sets to mix"),
        ({MIX: 1.0}, {}, "cannot be a source of itself"),
        ({MEDIUM: 1.0}, {"transitions": 0}, "transitions must be 1 or more"),
        ({MEDIUM.replace("v0", "v9"): 1.0}, {}, f"no data set .*did you mean {MEDIUM}"),
        (
            {MEDIUM: 0.5, EXPERT: 0.5},
            {"transitions": 600},
            f"{EXPERT} holds 250 transitions in 10 episodes, 300 are wanted of it: --transitions 500 would do",
        ),
    ],
)
def test_mixes_that_are_refused(
    shares: dict[str, float | None], options: dict[str, Any], message: str, sources: dict[str, Episodes], root: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        mixing.mix(MIX, shares, progress=False, **options)
    assert "\n" not in str(caught.value)
    assert not (root / MIX).exists()


def test_what_would_do_does(sources: dict[str, Episodes]) -> None:
    mixing.mix(MIX, {MEDIUM: 0.5, EXPERT: 0.5}, transitions=500, progress=False)


def test_sources_that_differ(sources: dict[str, Episodes]) -> None:
    other_task, other_prey = "om2p/halfcheetah-2x3/medium-v0", "om2p/cooperative-navigation/hunted-v0"
    hc = dataclasses.replace(random_episodes(find("hc"), [4, 4]), policy=np.zeros(2, dtype=np.int32))
    store(other_task, hc, ["late"])
    store(other_prey, cn_episodes([25] * 2, seed=3), ["late"], collection={"prey": "scripted"})
    with pytest.raises(UserError, match="the environment is 'halfcheetah-2x3' beside 'cooperative-navigation'"):
        mixing.mix(MIX, {MEDIUM: 0.5, other_task: 0.5}, progress=False)
    with pytest.raises(
        UserError, match=f"{other_prey} and {MEDIUM} cannot be mixed: the prey is 'scripted' beside None"
    ):
        mixing.mix(MIX, {MEDIUM: 0.5, other_prey: 0.5}, progress=False)


def test_data_sets_of_others() -> None:
    names = ["lab/twins/left-v0", "lab/twins/right-v0"]
    for name, lengths in zip(names, [(3, 5), (4, 6)], strict=True):
        stock_dataset(name, Foreign(), lengths)
    mixing.mix("lab/twins/both-v0", {names[0]: 8 / 18, names[1]: None}, progress=False)
    loaded = dataset.load("lab/twins/both-v0")
    assert loaded.episodes.lengths.tolist() == [3, 5, 4, 6]
    assert [policy.name.partition("@")[2] for policy in loaded.policies] == names
    first = dataset.load(names[0]).episodes
    np.testing.assert_array_equal(loaded.episodes.obs[: len(first.obs)], first.obs)
    assert loaded.metadata["tier_sources"][0]["hash"] == first.content_hash()


def test_an_existing_mix_stays(sources: dict[str, Episodes]) -> None:
    mixing.mix(MIX, {MEDIUM: 1.0}, transitions=100, progress=False)
    with pytest.raises(UserError, match=f"{MIX} exists already"):
        mixing.mix(MIX, {MEDIUM: 1.0}, transitions=200, progress=False)
    assert dataset.load(MIX).episodes.num_transitions == 100


def test_command(sources: dict[str, Episodes]) -> None:
    arguments = ["mix", f"{MEDIUM}=0.9", EXPERT, "--id", MIX, "--transitions", "275", "--seed", "1", "--quiet"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert f"{MIX}: 300 transitions in 12 episodes" in result.output  # 9.9 medium episodes and 1.1 of the expert
    assert f"{EXPERT}: 50 transitions" in result.output
    assert dataset.load(MIX).episodes.num_episodes == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["a/b-v0=x"], "<id>=<share>"), (["a/b-v0=1", "a/b-v0"], "named twice")],
)
def test_shares_that_cannot_be_read(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mixing.parse_shares(arguments)
