"""Checks of agents that leave before their team, where a data set stores each agent's own flags."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from om2p_data.validation.findings import Report
from om2p_data.validation.raw import Block, rowwise

_CHECK = "agents"
_PATHS = ("infos/agent_terminations", "infos/agent_truncations", "infos/agent_mask")


def check_members(block: Block, agents: Sequence[str], report: Report) -> None:
    """Every agent ends once; from then on it is masked and its data are zero; the team ends with its last agent."""
    if any(path not in block.arrays for path in _PATHS):
        return
    terminated, truncated, mask = (block.arrays[path] != 0 for path in _PATHS)  # [sum (T_e + 1), N]
    if terminated.shape[1:] != (len(agents),):
        report.problem(_CHECK, f"flags of {terminated.shape[1:]} agents a row instead of {len(agents)}")
        return
    starts, lengths = block.first_row, block.lengths
    ended = terminated | truncated
    so_far = np.cumsum(ended, axis=0)
    before = np.repeat(so_far[starts] - ended[starts], lengths + 1, axis=0)
    earlier = so_far - ended - before  # how often each agent ended in an earlier row of its episode
    last = starts + lengths
    problems = {
        "a flag stands in the first row, before any step": _rows(starts, ended[starts].any(axis=1)),
        "an agent ends twice": _rows(np.arange(len(ended)), (ended & (earlier > 0)).any(axis=1)),
        "an agent never ends": _rows(last, ((earlier + ended)[last] == 0).any(axis=1)),
        "agent_mask is not what the flags say": _rows(np.arange(len(ended)), (mask == (earlier > 0)).any(axis=1)),
        "no agent ends in the last step": _rows(last, ~ended[last].any(axis=1)),
    }
    for message, rows in problems.items():
        if len(rows):
            report.problem(_CHECK, message, block.place("infos", int(rows[0]), True), count=len(rows))
    absent = earlier > 0
    steps = np.ones(len(ended), dtype=bool)
    steps[starts] = False  # row t + 1 belongs to step t
    for index, agent in enumerate(agents):
        for path, gone in ((f"observations/{agent}", absent), (f"actions/{agent}", absent[steps])):
            array = block.arrays.get(path)
            if array is None:
                continue
            later = np.flatnonzero(rowwise(np.any, array != 0) & gone[:, index])
            if len(later):
                place = block.place(path, int(later[0]), path.startswith("observations"))
                report.problem(_CHECK, f"{path} is not zero for an agent that has ended", place, count=len(later))
    report.fine(_CHECK, "every agent ends once, and is zero from then on")


def _rows(candidates: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    return candidates[wrong]
