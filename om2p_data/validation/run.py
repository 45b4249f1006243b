"""Validation of one data set: which checks there are, and in which order."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from gymnasium import spaces
from minari.namespace import NAMESPACE_METADATA_FILENAME

from om2p_data import dataset, hdf5
from om2p_data.dataset import Dataset
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError, unknown
from om2p_data.storage import datasets_root, reason
from om2p_data.validation import facts as facts_of
from om2p_data.validation.facts import Facts
from om2p_data.validation.findings import Finding, Report, Severity
from om2p_data.validation.members import check_members
from om2p_data.validation.raw import Block, Leaf, RawFile
from om2p_data.validation.values import ValueChecks
from om2p_data.validation.worlds import WorldChecks

LEFTOVERS = ".partial", ".replaced"  # how hidden folders end that a killed writer of ours leaves
_SAMPLE = 256  # episodes of the HDF5 file that are read where the columns hold the same
_EPISODES_PER_BLOCK = 1_024


def validate(dataset_id: str, root: str | os.PathLike[str] | None = None, *, full: bool = False) -> list[Finding]:
    """Check a multi-agent Minari data set, whoever wrote it, in every way that its form allows.

    Args:
        dataset_id: `<namespace>/<task>/<tier>-v<N>`, or any other id of a local Minari data set.
        root: folder of all data sets; by default Minari's.
        full: read every episode of the HDF5 file, even where the flat columns, whose hash was checked, hold the same.

    Returns:
        One finding a check, more where a check finds several things.

    Raises:
        UserError: there is no such data set.
    """
    folder = datasets_root(root) / dataset_id
    if not (folder / "data").is_dir():
        raise unknown(f"data set in {datasets_root(root)}:", dataset_id, stored_ids(root))
    report = Report()
    _check_surroundings(folder, datasets_root(root), report)
    facts = facts_of.check(facts_of.read(folder, report), dataset_id, report)
    file = folder / "data" / hdf5.FILE_NAME
    if facts.content.get("data_format", "hdf5") != "hdf5":
        report.problem("file", f"data_format is {facts.content['data_format']!r}: only hdf5 is looked into")
        return report.findings()
    report.fine("file", f"{file.name} opens")
    try:
        raw = RawFile(file)
    except OSError as error:
        report.problem("file", f"{file.name} cannot be opened: {reason(error)}")
        return report.findings()
    with raw:
        _check_episodes(raw, report)
        loaded = _load(dataset_id, root, folder, facts, report)
        _check_data(raw, folder, facts, loaded, full, report)
    return report.findings()


def stored_ids(root: str | os.PathLike[str] | None = None) -> list[str]:
    """Ids of all folders that Minari takes for data sets, whatever is in them, in order."""
    top = datasets_root(root)
    found = []
    for folder, names, _ in os.walk(top):
        if "data" in names and Path(folder) != top:
            found.append(Path(folder).relative_to(top).as_posix())
            names.clear()
        names[:] = [name for name in names if not name.startswith(".")]
    return sorted(found)


def _check_surroundings(folder: Path, root: Path, report: Report) -> None:
    """Files beside the data: what a killed program left, and what Minari needs to share a set."""
    check = "folder"
    beside = (folder.with_name(f".{folder.name}{suffix}") for suffix in LEFTOVERS)
    inside = (path for path in folder.glob(".*") if path.suffix in LEFTOVERS)
    for path in itertools.chain(filter(Path.exists, beside), inside):
        report.problem(
            check,
            "left by a program that was killed, or one that is at work: om2p-data repair removes what is left",
            str(path.relative_to(root)),
            severity=Severity.WARNING,
        )
    for namespace in itertools.takewhile(lambda parent: parent != root, folder.parents):
        if not (namespace / NAMESPACE_METADATA_FILENAME).is_file():
            report.problem(
                check,
                f"{NAMESPACE_METADATA_FILENAME} is missing, without which Minari uploads nothing",
                str(namespace.relative_to(root)),
                severity=Severity.WARNING,
            )
    report.fine(check, "nothing is missing, nothing left over")


def _check_episodes(raw: RawFile, report: Report) -> None:
    check = "episodes"
    numbers = raw.numbers
    strange = sorted(set(raw.names) - {f"episode_{number}" for number in numbers})
    if strange:
        report.problem(
            check, "a group is none of an episode, which Minari counts as one", strange[0], count=len(strange)
        )
    if not numbers:
        report.problem(check, "the file holds no episodes")
    missing = sorted(set(range(numbers[-1] + 1 if numbers else 0)) - set(numbers))
    if missing:
        report.problem(check, "an episode is missing", f"episode_{missing[0]}", count=len(missing))
    report.fine(check, f"{len(numbers):,} episodes, numbered without a gap")


def _load(
    dataset_id: str, root: str | os.PathLike[str] | None, folder: Path, facts: Facts, report: Report
) -> Dataset | None:
    """The set as training would load it, its hash compared with the stated one; None where it cannot be."""
    check = "loading"
    try:
        loaded = dataset.load(dataset_id, root)
    except UserError as error:
        report.problem(check, str(error))
        return None
    stated = facts.content.get("content_hash")
    if facts.is_ours and (found := loaded.episodes.content_hash()) != stated:
        report.problem(
            check,
            f"the flat columns were changed after they were written (content hash {found[:12]}, stated "
            f"{str(stated)[:12]}): om2p-data repair removes them",
        )
        return None
    report.fine(check, "loads, and its content hash is as stated" if facts.is_ours else "loads")
    return loaded


def _check_data(raw: RawFile, folder: Path, facts: Facts, loaded: Dataset | None, full: bool, report: Report) -> None:
    numbers = raw.numbers
    leaves = raw.leaves(facts.declared, facts.pictures)
    values = ValueChecks(leaves, facts, report)
    world = None
    if loaded is not None and loaded.task is not None:
        world = WorldChecks(loaded.task, facts.content.get("collection") or {}, report)
    # The columns of a foreign set state no hash: they are what was just read from the file.
    trusted = loaded.episodes if loaded is not None and facts.is_ours else None
    sampled = trusted is not None and not full and len(numbers) > _SAMPLE
    chosen = np.linspace(0, len(numbers) - 1, _SAMPLE).astype(int) if sampled else range(len(numbers))
    read = steps = 0

    def look(block: Block) -> None:
        values.look(block)
        check_members(block, facts.agents, report)
        if world is not None:
            world.look(block)

    for block in raw.blocks([numbers[index] for index in chosen], leaves, report):
        read += len(block.lengths)
        steps += int(block.lengths.sum())
        _check_attributes(block, facts, report)
        if trusted is not None:
            _check_agreement(block, _from_columns(trusted, block.numbers, leaves, facts.agents), report)
        if not sampled:
            look(block)
    if sampled and trusted is not None:
        for begin in range(0, trusted.num_episodes, _EPISODES_PER_BLOCK):
            end = min(begin + _EPISODES_PER_BLOCK, trusted.num_episodes)
            look(_from_columns(trusted, np.arange(begin, end), leaves, facts.agents))
    shown = f"{read:,} of {len(numbers):,} episodes read" if sampled else f"{read:,} episodes read"
    report.fine("shapes", f"{shown}, T + 1 observations and T of everything else")
    report.fine("types", "as the spaces declare")
    report.fine("attributes", "number, length and policy of every episode as they should be")
    if trusted is not None:
        report.fine("columns", f"the flat columns hold the same as the HDF5 file ({shown})")
    values.finish()
    if world is not None:
        world.finish()
    whole = read == len(numbers) and not sampled
    total = trusted.num_transitions if sampled and trusted is not None else steps if whole else None
    facts_of.check_counts(facts, folder, len(numbers), total, report)
    if trusted is not None:
        facts_of.check_statistics(facts, trusted, report)


def _check_attributes(block: Block, facts: Facts, report: Report) -> None:
    check = "attributes"
    policies = {(policy.get("name"), policy.get("step")) for policy in facts.content.get("behaviour_policies") or ()}
    for number, length, attributes in zip(block.numbers, block.lengths, block.attributes, strict=True):
        place = f"episode_{number}"
        for key, found in (("id", number), ("total_steps", length)):
            if attributes.get(key) != found:
                report.problem(check, f"{key} is not that of the data", f"{place}: {attributes.get(key)}")
        if not facts.is_ours:
            continue
        if (attributes.get("policy"), attributes.get("policy_step")) not in policies:
            report.problem(check, "policy is none of the metadata's", f"{place}: {attributes.get('policy')}")
        if not isinstance(attributes.get("seed"), int):
            report.problem(check, "seed is missing", place)


def _check_agreement(block: Block, other: Block, report: Report) -> None:
    """The arrays of the HDF5 file and those made from the columns must be equal, bit for bit."""
    for path in sorted(block.arrays.keys() & other.arrays.keys()):
        ours, theirs = block.arrays[path], other.arrays[path]
        if ours.shape != theirs.shape or not np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f"):
            report.problem("columns", f"{path} differs between the flat columns and the HDF5 file", _first(block))


def _from_columns(episodes: Episodes, numbers: np.ndarray, leaves: Sequence[Leaf], agents: Sequence[str]) -> Block:
    """The given episodes as they should stand in the HDF5 file."""
    chosen = episodes.select(numbers)
    arrays = dict(_arrays(chosen, leaves, agents))
    return Block(numbers, chosen.lengths, arrays)


def _arrays(chosen: Episodes, leaves: Sequence[Leaf], agents: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    yield "rewards", chosen.team_rewards
    yield "terminations", chosen.team_terminated
    yield "truncations", chosen.team_truncated
    rewards = np.zeros((len(chosen.obs), chosen.rewards.shape[1]), dtype=np.float32)
    rewards[chosen.obs_index + 1] = chosen.rewards
    yield "infos/agent_rewards", rewards
    if chosen.state is not None:
        yield "infos/state", chosen.state
    held = {"observations": chosen.obs, "actions": chosen.actions}
    for leaf in leaves:
        top, _, agent = leaf.path.partition("/")
        if top in held and agent in agents and leaf.space is not None:
            array = held[top][:, agents.index(agent)]
            yield leaf.path, _unpadded(array, leaf.space)


def _unpadded(array: np.ndarray, space: spaces.Space) -> np.ndarray:
    """An agent's part of a padded array [T, D], as its space has it."""
    if isinstance(space, spaces.Discrete):
        return array[:, : space.n].argmax(axis=1) + space.start
    plain = np.ascontiguousarray(array[:, : spaces.flatdim(space)])
    return plain.reshape(len(array), *(space.shape or ()))


def _first(block: Block) -> str:
    return f"episodes {block.numbers[0]} to {block.numbers[-1]}"
