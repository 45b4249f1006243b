"""Every shipped recipe loads for whatever it claims to cover, and says what the papers say."""

from __future__ import annotations

import numpy as np
import pytest

from om2p_data import tiers
from om2p_data.behavior import runs
from om2p_data.envs.registry import TASKS, Task
from om2p_data.errors import UserError
from om2p_data.recipe import Record, bundled, fill, merge, parse_overrides, read
from om2p_data.tiers import Tier
from om2p_train import algorithms, config
from om2p_train.config import Scale
from om2p_train.flows import Derivative, TimePair
from om2p_train.networks import OneStep
from om2p_train.streams import INITIALISATION, SeedStreams

RECIPES = ["bc", "om2p", "om2p-paper", "om2p-released"]

# OM2P paper, Table 3: eta and xi.
PAPER = {
    ("predator-prey", "medium-replay"): (100, (0, 0, 0, 0)),
    ("predator-prey", "medium"): (10, (0, 0, 0.2, 0)),
    ("predator-prey", "medium-expert"): (100, (2, 0, 0, 0)),
    ("predator-prey", "expert"): (1, (0, 0, 0, 0)),
    ("world", "medium-replay"): (100, (0, 0, 0.2, 0)),
    ("world", "medium"): (1000, (0, 0, 0.2, 0)),
    ("world", "medium-expert"): (10000, (0, 0, 0, 0)),
    ("world", "expert"): (1, (0, 0, 0, 0)),
    ("cooperative-navigation", "medium-replay"): (1, (0, 0, 0, 0)),
    ("cooperative-navigation", "medium"): (1, (0, 0, 0, 0)),
    ("cooperative-navigation", "medium-expert"): (0.1, (0, 0, 0.05, 0)),
    ("cooperative-navigation", "expert"): (1, (0, 0, 0.1, 0)),
    ("halfcheetah-2x3", "medium-replay"): (1, (0, 0, 0, 0)),
    ("halfcheetah-2x3", "medium"): (0.125, (0, 0, 0, 0)),
    ("halfcheetah-2x3", "medium-expert"): (0.02, (0, 0, 0, 0)),
    ("halfcheetah-2x3", "expert"): (0.008, (0, 0, 0, 0)),
}


def test_what_is_bundled() -> None:
    assert bundled("data") == sorted(TASKS)
    assert bundled("train") == RECIPES


# Data


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_data_recipes_load_and_build_a_learner(task: Task) -> None:
    behavior = tiers.load_recipe(task, None).behavior
    assert behavior.collection_noise == 0.1  # as in the published data sets
    assert (behavior.levels.medium, behavior.levels.expert) == (task.returns.medium, task.returns.expert)
    assert behavior.max_steps >= 10 * behavior.num_envs * behavior.segment_steps
    assert behavior.evaluation_episodes <= behavior.judging_episodes
    actor = runs.start(task, behavior, seed=0).actor
    actions = actor.act(np.zeros((2, task.num_agents, task.obs_dim), np.float32), np.random.default_rng(0))
    assert actions.shape == (2, task.num_agents, task.act_dim)


# Training


@pytest.mark.parametrize("scale", Scale)
@pytest.mark.parametrize("name", RECIPES)
def test_training_recipes_load_for_every_task_and_tier(name: str, scale: Scale) -> None:
    for task in TASKS.values():
        for tier in Tier:
            recipe = config.load(name, task, tier, scale)
            assert (recipe.name, recipe.scale) == (name, scale)
            assert recipe.run.updates % recipe.run.evaluate_every == 0


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
@pytest.mark.parametrize("name", RECIPES)
def test_training_recipes_build_their_algorithm(name: str, task: Task) -> None:
    for tier in Tier:
        recipe = config.load(name, task, tier)
        algorithms.find(recipe.algorithm)(task, recipe.options, SeedStreams([0, 1], INITIALISATION))


@pytest.mark.parametrize("name", ["om2p-paper", "om2p-released"])
def test_eta_and_xi_are_the_papers(name: str) -> None:
    for (task, tier), expected in PAPER.items():
        options = config.load(name, TASKS[task], Tier(tier), Scale.PAPER).options.model_dump()
        assert (options["eta"], options["xi"]) == expected, (task, tier)
        assert not options["normalize_q"]


@pytest.mark.parametrize("name", ["om2p", "om2p-paper", "om2p-released"])
def test_settings_common_to_all_of_the_papers_runs(name: str) -> None:
    recipe = config.load(name, TASKS["world"], Tier.MEDIUM, Scale.PAPER)
    assert recipe.run.updates == 1_000_000
    assert recipe.optimizer.model_dump() == {"learning_rate": 3e-4, "batch_size": 256, "rho": 0.005}
    options = recipe.options.model_dump()
    assert (options["gamma"], options["hidden"]) == (0.99, (512, 512, 512, 512))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("om2p", (TimePair.ORDERED, Derivative.EXACT, OneStep.JUMP, True)),
        ("om2p-paper", (TimePair.ONE_DRAW, Derivative.ZERO, OneStep.JUMP, True)),
        ("om2p-released", (TimePair.INDEPENDENT, Derivative.ZERO, OneStep.RAW, False)),
    ],
)
def test_presets(name: str, expected: tuple) -> None:
    options = config.load(name, TASKS["world"], Tier.MEDIUM).options.model_dump()
    assert tuple(options[key] for key in ("time_pair", "derivative", "one_step", "target_actor")) == expected
    assert (options["adaptive_power"] > 0) == (name == "om2p")


# How recipes are read


class Inner(Record):
    size: int = 3
    widths: tuple[int, ...] = (1,)


class Outer(Record):
    rate: float
    name: str = ""
    on: bool = False
    inner: Inner = Inner()
    spare: Inner | None = None


def test_later_layers_win_key_by_key() -> None:
    base = {"rate": 1.0, "inner": {"size": 1, "widths": [1]}}
    merged = merge(base, {"inner": {"size": 2}, "name": "x"})
    assert merged == {"rate": 1.0, "name": "x", "inner": {"size": 2, "widths": [1]}}
    assert base["inner"] == {"size": 1, "widths": [1]}
    assert merge({"a": {"b": 1}}, {"a": 5}) == {"a": 5}


def test_settings_are_toml_or_text() -> None:
    found = parse_overrides(["a.b.c=1", "a.b.d = [1, 2.5]", "a.e=one-draw", "f=true", 'g="64"', "h=x=y", "a.b.c=3"])
    assert found == {"a": {"b": {"c": 3, "d": [1, 2.5]}, "e": "one-draw"}, "f": True, "g": "64", "h": "x=y"}


@pytest.mark.parametrize("setting", ["rate", "", "=3", " =3"])
def test_settings_without_a_key_are_refused(setting: str) -> None:
    with pytest.raises(UserError, match="--set takes key=value"):
        parse_overrides([setting])


def test_values_of_the_right_type_are_taken() -> None:
    record = fill(Outer, {"rate": 1, "inner": {"widths": [4, 5]}}, "recipe x")
    assert record == Outer(rate=1.0, inner=Inner(widths=(4, 5)))
    with pytest.raises(ValueError, match="frozen"):
        record.rate = 2.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "recipe x: key 'rate' is missing"),
        ({"rate": "1"}, "recipe x: rate = '1' is wrong: Input should be a valid number"),
        ({"rate": True}, "recipe x: rate = True is wrong"),
        ({"rate": float("inf")}, "recipe x: rate = inf is wrong: Input should be a finite number"),
        ({"rate": 1, "on": 1}, "recipe x: on = 1 is wrong: Input should be a valid boolean"),
        ({"rate": 1, "name": 3}, "recipe x: name = 3 is wrong: Input should be a valid string"),
        ({"rate": 1, "inner": {"size": 2.5}}, "recipe x: inner.size = 2.5 is wrong"),
        ({"rate": 1, "inner": {"size": "2"}}, "recipe x: inner.size = '2' is wrong: Input should be a valid integer"),
        ({"rate": 1, "inner": {"widths": [1, "2"]}}, "recipe x: inner.widths.1 = '2' is wrong"),
        ({"rate": 1, "inner": 5}, "recipe x: inner = 5 is wrong"),
        ({"rate": {"a": 1}}, "recipe x: rate is wrong: Input should be a valid number"),
        ({"rate": 1, "inner": {"sise": 5}}, "recipe x: unknown key 'inner.sise': did you mean 'inner.size'"),
        ({"rate": 1, "spare": {"sise": 5}}, "recipe x: unknown key 'spare.sise': did you mean 'spare.size'"),
        ({"rate": 1, "rates": 5}, "recipe x: unknown key 'rates': did you mean 'rate' or 'name'? valid: rate, "),
    ],
)
def test_wrong_values_name_their_key(values: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        fill(Outer, values, "recipe x")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_options_that_make_no_sense_together_say_why() -> None:
    settings = ["options.derivative=finite-difference", "options.finite_difference_step=1e-12"]
    with pytest.raises(UserError, match=r"^recipe om2p: options is wrong: .*resolution") as caught:
        config.load("om2p", TASKS["world"], Tier.MEDIUM, settings=settings)
    assert len(str(caught.value)) < 250


def test_keys_are_named_with_their_table() -> None:
    with pytest.raises(UserError, match=r"unknown key 'run\.rote': did you mean 'run\.rate'"):
        fill(Outer, {"rate": 1, "rote": 2}, "recipe x", "run")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = ", "is not valid TOML"),
        (b"\xff\xfe", "cannot be read: .*utf-8"),
        (None, "does not exist; bundled .*om2p"),
    ],
)
def test_files_that_cannot_be_read(content: bytes | None, message: str, tmp_path) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(path, "train")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_recipes_offer_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown recipe 'om2p-papr': did you mean 'om2p-paper'"):
        read("om2p-papr", "train")
