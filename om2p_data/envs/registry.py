"""The task table: names, sizes, horizons and the published returns that every comparison stands beside."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from om2p_data.errors import unknown


class Family(enum.Enum):
    """Which simulator a task runs on."""

    PARTICLE = "particle"
    LOCOMOTION = "locomotion"


@dataclass(frozen=True)
class PublishedReturns:
    """Undiscounted team returns of one episode, as published; None where nothing is.

    The tiers' are the means of the data sets: those of OMAR, which the OM2P paper uses, and for the tasks that only
    VGM2P has, those of its data sets. `reference_random` and `reference_expert` are the OM2P paper's anchors of the
    normalised score.
    """

    random: float | None = None
    medium_replay: float | None = None
    medium: float | None = None
    expert: float | None = None
    reference_random: float | None = None
    reference_expert: float | None = None
    medium_expert: float | None = None

    def of_tier(self, tier: str) -> float | None:
        """Mean of the published data set of that tier, None where there is none."""
        means = {
            "random": self.random,
            "medium-replay": self.medium_replay,
            "medium": self.medium,
            "medium-expert": self.medium_expert,
            "expert": self.expert,
        }
        return means.get(tier)


@dataclass(frozen=True)
class Task:
    """One row of the task table.

    `agents` are the controlled agents in index order (a frozen prey is part of the world, not an agent).
    `store_state` says whether data sets hold the global state: they do where the observations do not determine it.
    Where `discrete`, an agent chooses one of `act_dim` moves; the vector interface takes choices one-hot.
    The team reward is the mean over agents of their rewards in every task. `expert_share` is the share of expert
    transitions in the medium-expert tier (OM2P paper, section 5: 10% in particle worlds, 0.1% in MuJoCo; half in the
    tasks that only VGM2P has, since two of its three medium-expert means lie halfway: 2105 between 1426 and 2785,
    1737 between 1419 and 2055; Hopper's 1191 lies below the half of 724 and 2452). `measured_random` is no published
    figure but ours, where nobody published one: the mean return of uniform actions (over 1,000
    episodes in MuJoCo, 50,000 in particle worlds). `chosen_levels` are ours too: what the medium and the expert team
    aim at where no data are published.
    """

    name: str
    alias: str
    family: Family
    scenario: str
    agents: tuple[str, ...]
    obs_dim: int
    act_dim: int
    state_dim: int
    horizon: int
    store_state: bool
    expert_share: float
    returns: PublishedReturns
    summary: str
    measured_random: float | None = None
    discrete: bool = False
    chosen_levels: tuple[float, float] | None = None

    @property
    def num_agents(self) -> int:
        return len(self.agents)

    @property
    def levels(self) -> tuple[float, float]:
        """Mean returns of the medium and of the expert data: the published ones, else `chosen_levels`."""
        medium, expert = self.returns.medium, self.returns.expert
        if medium is None or expert is None:
            assert self.chosen_levels is not None, f"{self.name} has no levels"
            return self.chosen_levels
        return medium, expert

    @property
    def reference_random(self) -> float:
        """Return that scores 0: the paper's reference, else `measured_random`."""
        reference = self.returns.reference_random
        if reference is None:
            reference = self.measured_random
        assert reference is not None, f"{self.name} has no random return"
        return reference

    @property
    def reference_expert(self) -> float:
        """Return that scores 100: the paper's reference, else the mean of the expert data."""
        reference = self.returns.reference_expert
        return self.levels[1] if reference is None else reference

    def normalized(self, team_return: float) -> float:
        """Conventional score: 0 for the random reference, 100 for the expert reference."""
        low, high = self.reference_random, self.reference_expert
        return 100.0 * (team_return - low) / (high - low)


def _discrete(task: Task, measured_random: float, expert: float) -> Task:
    """A particle task whose agents choose among five moves; nothing is published for it.

    World and rewards are the task's own, and so is its medium level; its experts' may be beyond what moves can do.
    """
    return replace(
        task,
        name=f"{task.name}-discrete",
        alias=f"{task.alias}d",
        act_dim=5,  # stay, left, right, down, up
        discrete=True,
        returns=PublishedReturns(),
        measured_random=measured_random,
        chosen_levels=(task.levels[0], expert),
        summary=f"{task.summary}, by one of 5 moves a step",
    )


_PREDATORS = ("predator_0", "predator_1", "predator_2")

_COOPERATIVE_NAVIGATION = Task(
    name="cooperative-navigation",
    alias="cn",
    family=Family.PARTICLE,
    scenario="simple_spread",
    agents=("agent_0", "agent_1", "agent_2"),
    obs_dim=18,
    act_dim=2,
    state_dim=18,
    horizon=25,
    store_state=False,
    expert_share=0.1,
    returns=PublishedReturns(159.6, 203.7, 273.4, 531.0, 159.8, 516.8),
    summary="3 agents cover 3 landmarks without bumping into each other",
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _COOPERATIVE_NAVIGATION,
        _discrete(_COOPERATIVE_NAVIGATION, measured_random=158.0, expert=480.0),
        Task(
            name="predator-prey",
            alias="pp",
            family=Family.PARTICLE,
            scenario="simple_tag",
            agents=_PREDATORS,
            obs_dim=16,
            act_dim=2,
            state_dim=20,
            horizon=25,
            store_state=False,
            expert_share=0.1,
            returns=PublishedReturns(-4.1, 3.9, 116.4, 207.9, -4.1, 185.6),
            summary="3 slow predators chase a faster prey around 2 obstacles",
        ),
        Task(
            name="world",
            alias="world",
            family=Family.PARTICLE,
            scenario="simple_world",
            agents=_PREDATORS,
            obs_dim=24,
            act_dim=2,
            state_dim=26,
            horizon=25,
            store_state=False,
            expert_share=0.1,
            returns=PublishedReturns(-6.8, 1.2, 65.9, 85.2, -6.8, 79.5),
            summary="3 predators chase a prey that looks for food between forests",
        ),
        Task(
            name="halfcheetah-2x3",
            alias="hc",
            family=Family.LOCOMOTION,
            scenario="HalfCheetah",
            agents=("agent_0", "agent_1"),
            obs_dim=6,
            act_dim=3,
            state_dim=17,
            horizon=1000,
            store_state=True,
            expert_share=0.001,
            returns=PublishedReturns(-282.9, 423.0, 1568.9, 3338.7, -284.0, 3568.8),
            summary="the back leg and the front leg of a HalfCheetah run together",
        ),
        Task(
            name="halfcheetah-6x1",
            alias="hc6",
            family=Family.LOCOMOTION,
            scenario="HalfCheetah",
            agents=tuple(f"agent_{i}" for i in range(6)),
            obs_dim=23,
            act_dim=1,
            state_dim=17,
            horizon=1000,
            store_state=True,
            expert_share=0.5,
            returns=PublishedReturns(None, 656.0, 1426.0, 2785.0, None, None, medium_expert=2105.0),
            measured_random=-282.5,
            summary="the 6 joints of a HalfCheetah run together, one agent each",
        ),
        Task(
            name="hopper-3x1",
            alias="hopper",
            family=Family.LOCOMOTION,
            scenario="Hopper",
            agents=("agent_0", "agent_1", "agent_2"),
            obs_dim=14,
            act_dim=1,
            state_dim=11,
            horizon=1000,
            store_state=True,
            expert_share=0.5,
            returns=PublishedReturns(None, 746.0, 724.0, 2452.0, None, None, medium_expert=1191.0),
            measured_random=17.6,
            summary="the 3 joints of a Hopper hop together without a fall, one agent each",
        ),
        Task(
            name="ant-2x4",
            alias="ant",
            family=Family.LOCOMOTION,
            scenario="Ant",
            agents=("agent_0", "agent_1"),
            obs_dim=107,
            act_dim=4,
            state_dim=105,
            horizon=1000,
            store_state=True,
            expert_share=0.5,
            returns=PublishedReturns(None, 1030.0, 1419.0, 2055.0, None, None, medium_expert=1737.0),
            measured_random=-56.8,
            summary="the front legs and the back legs of an Ant walk together without a fall",
        ),
    )
}

_BY_ALIAS = {task.alias: task for task in TASKS.values()} | TASKS


def find(name: str) -> Task:
    """The task of that name or alias.

    Raises:
        UserError: no such task; the message offers the nearest names.
    """
    try:
        return _BY_ALIAS[name.lower()]
    except KeyError:
        raise unknown("environment", name, sorted(_BY_ALIAS)) from None
