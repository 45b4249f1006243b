"""A team as its learners see it: sizes, and the space in which its actions live."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from om2p_data.errors import UserError

if TYPE_CHECKING:
    from om2p_data.spec import TeamSpec


@dataclass(frozen=True)
class Team:
    """N agents, padded to the largest of them.

    Attributes:
        obs_dim: O, components of an observation.
        act_dims: components of each agent's action, or its number of choices.
        discrete: whether actions are choices; they are one-hot then.
        context: how many more components tell networks whose play is wanted; 0 but for behaviour teams.
    """

    obs_dim: int
    act_dims: tuple[int, ...]
    discrete: bool
    context: int = 0

    @property
    def num_agents(self) -> int:
        return len(self.act_dims)

    @property
    def act_dim(self) -> int:
        """A, the largest agent's."""
        return max(self.act_dims)

    @property
    def input_dim(self) -> int:
        """Components that networks see: an observation and its context."""
        return self.obs_dim + self.context

    @classmethod
    def of(cls, spec: TeamSpec, context: int = 0) -> Team:
        """The team of a data set.

        Args:
            spec: of the data set.
            context: as the attribute.

        Raises:
            UserError: some agents choose and others do not.
        """
        if len(set(spec.discrete)) > 1:
            raise UserError(
                f"the agents {', '.join(spec.agents)} have discrete and continuous actions: training needs one kind"
            )
        return cls(spec.obs_dim, spec.act_dims, spec.discrete[0], context)

    def to_json(self) -> dict[str, Any]:
        """Plain values for files."""
        return asdict(self) | {"act_dims": list(self.act_dims)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Team:
        """The inverse of `to_json`."""
        own = int(values["obs_dim"]), tuple(values["act_dims"]), bool(values["discrete"])
        return cls(*own, int(values.get("context", 0)))  # which the files of earlier versions lack


class ActionSpace(nn.Module):
    """The actions of K = seeds x agents learners: a box [-1, 1]^A, or one of A choices.

    Generative policies live in R^A: `encode` says where an action lies there, `decode` which action a point means. A
    choice lies at the corner with +1 in its own component and -1 in the others, and a point means its largest
    component. Components that pad a smaller agent are zero everywhere.
    """

    mask: Tensor

    def __init__(self, team: Team, num_seeds: int):
        super().__init__()
        self.discrete = team.discrete
        self.ragged = len(set(team.act_dims)) > 1
        used = np.arange(team.act_dim) < np.array(team.act_dims)[:, None]
        mask = torch.from_numpy(used).float().repeat(num_seeds, 1).unsqueeze(1)
        self.register_buffer("mask", mask, persistent=False)  # [K, 1, A]

    def encode(self, actions: Tensor) -> Tensor:
        """Actions of the data [K, B, A] -> points [K, B, A]."""
        return self.trim(2.0 * actions - 1.0) if self.discrete else actions

    def decode(self, points: Tensor) -> Tensor:
        """Points [K, ..., A] -> actions: clipped, or one-hot."""
        if not self.discrete:
            return self.trim(points.clamp(-1.0, 1.0))
        return F.one_hot(self.allowed(points).argmax(-1), points.shape[-1]).to(points.dtype)

    def trim(self, points: Tensor) -> Tensor:
        """Points [K, B, A] with zeros in the padding."""
        return points * self.mask if self.ragged else points

    def allowed(self, scores: Tensor) -> Tensor:
        """Scores of choices [K, ..., A], minus infinity where there is no such choice."""
        if not self.ragged:
            return scores
        mask = self.mask.view(len(self.mask), *(1,) * (scores.dim() - 2), -1)
        return scores.masked_fill(mask == 0, -torch.inf)
