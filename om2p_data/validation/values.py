"""Checks of the values of any multi-agent data set, block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from om2p_data.validation.facts import Facts
from om2p_data.validation.findings import Report, Severity
from om2p_data.validation.raw import Block, Leaf, rowwise

_ROUNDING = 1e-5  # of a space's range: how far single precision alone may carry a value beyond it
_RETURN_TOLERANCE = 1e-5  # relative, of sums in single precision


@dataclass
class _Outside:
    values: int = 0
    outside: int = 0
    worst: float = 0.0
    place: str = ""


class ValueChecks:
    """What can be said of a set's values without knowing its world.

    Args:
        leaves: the arrays of every episode.
        facts: what the metadata state.
        report: where findings go.
    """

    def __init__(self, leaves: Sequence[Leaf], facts: Facts, report: Report):
        self._leaves, self._facts, self._report = leaves, facts, report
        self._outside = {leaf.path: _Outside() for leaf in leaves if _is_bounded(leaf.space)}
        self._seen: dict[bytes, int] = {}
        self._episodes = self._steps = self._values = 0
        self._repeated_finals = 0
        self._lengths = (np.inf, 0)
        self._rules = {"mean": True, "sum": True}

    def look(self, block: Block) -> None:
        """Take in some episodes."""
        self._episodes += len(block.lengths)
        self._steps += int(block.lengths.sum())
        self._lengths = (
            min(self._lengths[0], int(block.lengths.min())),
            max(self._lengths[1], int(block.lengths.max())),
        )
        for leaf in self._leaves:
            array = block.arrays.get(leaf.path)
            if array is None:
                continue
            self._values += array.size
            self._look_finite(block, leaf, array)
            if leaf.path in self._outside:
                self._look_bounds(block, leaf, array)
        self._look_ends(block)
        self._look_rewards(block)
        self._look_repetitions(block)

    def finish(self) -> None:
        """Report what is known only at the end."""
        report = self._report
        report.fine("finite", f"{self._values:,} values, none of them NaN or infinite")
        self._report_bounds()
        low, high = self._lengths
        shown = f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
        report.fine("ends", f"every episode ends once, at its last step; {shown} steps")
        report.fine("duplicates", f"{self._episodes:,} different episodes")
        if self._episodes and self._repeated_finals == self._episodes:
            report.problem(
                "final obs",
                "the last two observations are the same in every episode: the true final one was not stored",
                severity=Severity.WARNING,
            )
        report.fine("final obs", "every episode has an observation after its last step")
        self._report_rewards()

    def _look_finite(self, block: Block, leaf: Leaf, array: np.ndarray) -> None:
        if array.dtype.kind != "f" or np.isfinite(np.vdot(array, array)):
            return  # a finite sum of squares has no other parts
        wrong = ~np.isfinite(array)
        if wrong.any():
            row = int(np.flatnonzero(rowwise(np.any, wrong))[0])
            self._report.problem(
                "finite",
                f"{leaf.path} holds NaN or infinity",
                block.place(leaf.path, row, leaf.final_row),
                count=int(np.count_nonzero(wrong)),
            )

    def _look_bounds(self, block: Block, leaf: Leaf, array: np.ndarray) -> None:
        low, high = _bounds(leaf.space)
        with np.errstate(invalid="ignore"):
            beyond = np.maximum(low - array, array - high)  # NaN is the business of another check
            outside = beyond > 0
        tally = self._outside[leaf.path]
        tally.values += array.size
        if outside.any():
            rows = rowwise(np.max, beyond)
            worst = float(np.nanmax(rows))
            if worst > tally.worst:
                tally.worst, row = worst, int(np.nanargmax(rows))
                tally.place = block.place(leaf.path, row, leaf.final_row)
            tally.outside += int(np.count_nonzero(outside))

    def _report_bounds(self) -> None:
        looked = 0
        for leaf in self._leaves:
            tally = self._outside.get(leaf.path)
            if tally is None:
                continue
            looked += tally.values
            if not tally.outside:
                continue
            low, high = _bounds(leaf.space)
            extent = np.max(np.where(np.isfinite(high - low), high - low, 1.0))
            self._report.problem(
                "bounds",
                f"{tally.outside / tally.values:.2%} of {leaf.path} lie outside the declared space, "
                f"by {tally.worst:.3g} at worst",
                tally.place,
                severity=Severity.WARNING if tally.worst <= _ROUNDING * extent else Severity.ERROR,
            )
        self._report.fine(
            "bounds",
            f"{looked:,} values inside the declared spaces" if looked else "the declared spaces have no bounds",
        )

    def _look_ends(self, block: Block) -> None:
        terminated, truncated = block.arrays.get("terminations"), block.arrays.get("truncations")
        if terminated is None or truncated is None:
            return
        ended = (terminated != 0) | (truncated != 0)
        last = block.first_step + block.lengths - 1
        open_ended = ~ended[last]
        early = ended.copy()
        early[last] = False
        # Other people's sets end without a flag where a recording was stopped; loading counts that as cut off.
        severity = Severity.ERROR if self._facts.is_ours else Severity.WARNING
        self._note("ends", "no flag marks the last step", block, open_ended, severity)
        rows = np.flatnonzero(early)
        if len(rows):
            place = block.place("terminations or truncations", int(rows[0]), False)
            self._report.problem("ends", "a flag stands before the last step", place, count=len(rows))
        horizon = self._facts.horizon
        if horizon is not None:
            self._note("ends", f"an episode is longer than the horizon, {horizon}", block, block.lengths > horizon)
            cut_early = np.asarray(truncated[last] != 0) & (block.lengths < horizon)
            self._note(
                "ends", f"an episode is cut off before the horizon, {horizon}", block, cut_early, Severity.WARNING
            )

    def _look_rewards(self, block: Block) -> None:
        rewards, own = block.arrays.get("rewards"), block.arrays.get("infos/agent_rewards")
        if rewards is None:
            return
        returns = np.add.reduceat(rewards.astype(np.float64), block.first_step)
        sizes = np.add.reduceat(np.abs(rewards.astype(np.float64)), block.first_step)
        for episode, attributes in enumerate(block.attributes):
            number, stated = block.numbers[episode], attributes.get("return_team")
            if stated is not None and abs(stated - returns[episode]) > _RETURN_TOLERANCE * (1.0 + sizes[episode]):
                self._report.problem(
                    "rewards", "return_team is not the sum of the rewards", f"episode_{number}: {stated}"
                )
        if own is None or own.ndim != 2 or own.shape[1] != len(self._facts.agents):
            return
        first = np.zeros(len(own), dtype=bool)
        first[block.first_row] = True
        self._note("rewards", "the first row of infos/agent_rewards is not zero", block, (own[first] != 0).any(axis=1))
        steps = own[~first].astype(np.float64)
        for rule, joined in (("mean", steps.mean(axis=1)), ("sum", steps.sum(axis=1))):
            differ = np.abs(joined - rewards) > _RETURN_TOLERANCE * (1.0 + np.abs(steps).sum(axis=1))
            self._rules[rule] &= not differ.any()
            if rule == "mean" and self._facts.team_is_mean and differ.any():
                row = int(np.flatnonzero(differ)[0])
                self._report.problem(
                    "rewards",
                    "the team's reward is not the mean of the agents'",
                    block.place("rewards", row, False),
                    count=int(np.count_nonzero(differ)),
                )

    def _report_rewards(self) -> None:
        if not any(leaf.path == "infos/agent_rewards" for leaf in self._leaves):
            self._report.fine("rewards", "of the team only")
            return
        rules = [rule for rule, holds in self._rules.items() if holds]
        if not rules and not self._facts.team_is_mean:
            self._report.problem(
                "rewards",
                "the team's reward is neither the mean nor the sum of infos/agent_rewards",
                severity=Severity.WARNING,
            )
        self._report.fine("rewards", f"the team's are the {' and the '.join(rules)} of the agents'")

    def _look_repetitions(self, block: Block) -> None:
        finals = np.ones(len(block.lengths), dtype=bool)
        goes_on = np.concatenate(([False], np.diff(block.numbers) == 1))
        digests = [hashlib.blake2b(digest_size=16) for _ in block.lengths]
        hashed = False
        for leaf in self._leaves:
            array = block.arrays.get(leaf.path)
            if array is None or not leaf.path.startswith(("observations", "actions")):
                continue
            hashed = True
            starts = block.first_row if leaf.final_row else block.first_step
            for digest, start, length in zip(digests, starts, block.lengths, strict=True):
                digest.update(array[start : start + length + leaf.final_row].data)
            if leaf.final_row:
                final = starts + block.lengths
                same = rowwise(np.all, array[final] == array[final - 1])
                finals = finals & same
                same = rowwise(np.all, array[starts[1:]] == array[final[:-1]])
                goes_on[1:] &= same
        if not hashed:
            return
        self._repeated_finals += int(np.count_nonzero(finals))
        self._note(
            "final obs",
            "an episode begins where the one before it ended, as if one had been cut in two",
            block,
            goes_on,
            Severity.WARNING,
        )
        for number, digest in zip(block.numbers.tolist(), digests, strict=True):
            first = self._seen.setdefault(digest.digest(), number)
            if first != number:
                self._report.problem(
                    "duplicates",
                    "an episode is the same as an earlier one",
                    f"episode_{number} as episode_{first}",
                    severity=Severity.WARNING,
                )

    def _note(
        self, check: str, message: str, block: Block, wrong: np.ndarray, severity: Severity = Severity.ERROR
    ) -> None:
        """Report the episodes of a block for which `wrong`, bool [E], holds."""
        numbers = block.numbers[wrong]
        if len(numbers):
            self._report.problem(check, message, f"episode_{numbers[0]}", count=len(numbers), severity=severity)


def _is_bounded(space: spaces.Space | None) -> bool:
    if isinstance(space, spaces.Box):
        return bool(np.isfinite(space.low).any() or np.isfinite(space.high).any())
    return isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)


def _bounds(space: spaces.Space | None) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest values of a bounded space, float64."""
    if isinstance(space, spaces.Box):
        return space.low.astype(np.float64), space.high.astype(np.float64)
    if isinstance(space, spaces.Discrete):
        return np.float64(space.start), np.float64(space.start + space.n - 1)  # pyright: ignore[reportReturnType]
    if isinstance(space, spaces.MultiDiscrete):
        start = space.start.astype(np.float64)
        return start, start + space.nvec - 1
    return np.zeros(()), np.ones(())
