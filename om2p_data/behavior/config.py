"""How behaviour teams are trained: the records that `[behavior]` of a data recipe fills."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import Field, PositiveInt, model_validator

from om2p_data.envs.registry import Task
from om2p_data.recipe import Record

MEDIUM, EXPERT = "medium", "expert"
LEVELS = (MEDIUM, EXPERT)
# A medium team lands within 5% of its level, an expert team at or up to 15% above: only then do results compare.
_WINDOWS = {MEDIUM: (0.95, 1.05), EXPERT: (1.0, 1.15)}


class Levels(Record):
    """Mean team returns (with collection noise) of the medium and the expert team."""

    medium: float = Field(gt=0)
    expert: float = Field(gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> Levels:
        if self.expert <= self.medium:
            raise ValueError(f"expert = {self.expert} must be above medium = {self.medium}")
        return self

    def window(self, level: str) -> tuple[float, float]:
        """Lowest and highest mean return that counts as that level."""
        low, high = _WINDOWS[level]
        aim = getattr(self, level)
        return low * aim, high * aim


class TD3Config(Record):
    """Off-policy learner: see `om2p_data.behavior.td3.TD3` for what the settings mean."""

    warmup_steps: int = Field(ge=0, description="steps of uniform actions, summed over worlds, before learning starts")
    updates_per_step: float = Field(gt=0, description="updates per step of all worlds")
    learning_rate: float = Field(gt=0)
    batch_size: int = Field(gt=0)
    gamma: float = Field(gt=0, lt=1)
    n_step: int = Field(gt=0)
    tau: float = Field(gt=0, le=1)
    policy_delay: int = Field(gt=0)
    smoothing: float = Field(ge=0)
    smoothing_clip: float = Field(ge=0)
    saturation_cost: float = Field(ge=0)
    reward_scale: float = Field(gt=0)
    exploration_noise: float = Field(ge=0)

    def learner(self) -> dict[str, Any]:
        """The settings of the learner itself; the others are the loop's."""
        loop = {"warmup_steps", "updates_per_step", "batch_size", "gamma", "n_step", "exploration_noise"}
        return self.model_dump(exclude=loop)


class PPOConfig(Record):
    """On-policy learner: see `om2p_data.behavior.ppo.PPO` for what the settings mean."""

    rollout_steps: int = Field(gt=0, description="steps of every world between two rounds of learning")
    epochs: int = Field(gt=0)
    minibatch: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    gamma: float = Field(gt=0, lt=1)
    gae_lambda: float = Field(ge=0, le=1)
    clip: float = Field(gt=0, lt=1)
    entropy_cost: float = Field(ge=0)
    initial_noise: float | None = Field(default=None, gt=0, description="of continuous actions alone")
    max_gradient: float = Field(gt=0)

    def learner(self) -> dict[str, Any]:
        """The settings of the learner itself; the others are the loop's."""
        return self.model_dump(exclude={"rollout_steps"})


class BehaviorConfig(Record):
    """How a behaviour team is trained online: with TD3 or with PPO, in segments between two evaluations."""

    num_envs: int = Field(gt=0)
    max_steps: int = Field(gt=0, description="environment steps, summed over worlds, after which training gives up")
    segment_steps: int = Field(gt=0, description="steps of every world between two evaluations")
    hidden: tuple[PositiveInt, ...]
    collection_noise: float = Field(ge=0, description="noise of the collecting policy, on which levels are judged")
    evaluation_episodes: int = Field(gt=0, description="episodes of the evaluation that ends a segment")
    judging_episodes: int = Field(gt=0, description="fresh episodes on which a level counts as reached")
    td3: TD3Config | None = None
    ppo: PPOConfig | None = None
    levels: Levels

    @model_validator(mode="after")
    def _one_learner(self) -> BehaviorConfig:
        if (self.td3 is None) == (self.ppo is None):
            raise ValueError("exactly one of the tables td3 and ppo must be there")
        if self.ppo is not None and self.segment_steps % self.ppo.rollout_steps:
            raise ValueError(
                f"segment_steps = {self.segment_steps} must be a multiple of ppo.rollout_steps = "
                f"{self.ppo.rollout_steps}"
            )
        return self

    @property
    def algorithm(self) -> str:
        """Name of the learner, as cards state it."""
        return "matd3" if self.td3 is not None else "mappo"

    def fingerprint(self, task: Task, prey: str | None) -> str:
        """Twelve hex digits that change with the task, the prey, and whatever changes a number on the way."""
        recipe = self.model_dump(mode="json", exclude={"max_steps"})  # only says when to give up
        facts = {"task": task.name, "prey": prey, "recipe": recipe}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
