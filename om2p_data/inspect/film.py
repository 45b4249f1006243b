"""Episodes drawn from the data alone: nothing is simulated, the worlds only show the states that were recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from om2p_data.dataset import Dataset
from om2p_data.envs import TASKS, Family, make
from om2p_data.envs.registry import Task
from om2p_data.errors import UserError, unknown

MOST_PICTURES = 250  # of an episode, unless asked for otherwise

_CAPTION = 24  # height of the strip above the picture, in pixels
_PAPER, _INK = (250, 250, 247), (60, 60, 60)


@dataclass(frozen=True)
class Choice:
    """An episode to be drawn, and as what it was asked for (`best`, or its number)."""

    index: int
    name: str


def choose(wanted: str, data: Dataset) -> list[Choice]:
    """`0,17,best,worst,median` -> episodes; the median is the lower one of an even number.

    Raises:
        UserError: no such episode.
    """
    ranked = np.argsort(data.episodes.team_returns, kind="stable")
    count = len(ranked)
    named = {"best": ranked[-1], "worst": ranked[0], "median": ranked[(count - 1) // 2]}
    chosen = []
    for part in (word.strip() for word in wanted.split(",")):
        if part in named:
            chosen.append(Choice(int(named[part]), part))
        elif part.isascii() and part.isdigit() and int(part) < count:
            chosen.append(Choice(int(part), part))
        else:
            raise unknown("episode", part, [*named, f"numbers from 0 to {count - 1}"])
    return chosen


def draw(data: Dataset, chosen: Sequence[Choice], every: int | None = None) -> list[np.ndarray]:
    """Pictures of the episodes, one after the other, with a line above that says which step of which episode it is.

    Args:
        data: data of one of our own tasks.
        chosen: which episodes.
        every: draw each so many-th step; by default so that no episode takes more than 250 pictures.

    Returns:
        uint8 [height, width, 3] each.

    Raises:
        UserError: the environment is somebody else's, or there is no OpenGL to draw bodies with.
    """
    task = data.task
    if task is None:
        raise UserError(
            f"{data.id} cannot be drawn: pictures are made of the states of our own worlds "
            f"({', '.join(TASKS)}), and {data.environment.name} is none of them"
        )
    episodes = data.episodes
    env = make(task.name, threads=1)
    frames = []
    try:
        for choice in chosen:
            steps, first = int(episodes.lengths[choice.index]), int(episodes.transition_start[choice.index])
            stride = every or -(-steps // MOST_PICTURES)
            so_far = np.concatenate(([0.0], np.cumsum(episodes.team_rewards[first : first + steps], dtype=np.float64)))
            label = f"episode {choice.index}" + ("" if choice.name.isdigit() else f" ({choice.name})")
            for number, picture in enumerate(env.film(_states(data, task, choice.index), stride)):
                step = number * stride
                frames.append(_captioned(picture, f"{label}, step {step} of {steps}, return {so_far[step]:.1f}"))
    finally:
        env.close()
    return frames


def _states(data: Dataset, task: Task, index: int) -> np.ndarray:
    """The global states of an episode, [T + 1, S]."""
    episodes = data.episodes
    begin = int(episodes.episode_start[index])
    rows = slice(begin, begin + int(episodes.lengths[index]) + 1)
    if task.family is Family.PARTICLE:
        from om2p_data.envs.particle import observed_states

        return observed_states(task, episodes.obs[rows])
    assert episodes.state is not None  # part of what makes it a data set of this task
    return episodes.state[rows]


def _captioned(picture: np.ndarray, text: str) -> np.ndarray:
    height, width = picture.shape[:2]
    image = Image.new("RGB", (width, height + _CAPTION), _PAPER)
    image.paste(Image.fromarray(picture), (0, _CAPTION))
    font = ImageFont.load_default(size=13)
    ImageDraw.Draw(image).text((8, _CAPTION / 2), text, fill=_INK, font=font, anchor="lm")
    return np.asarray(image)
