"""Every command, every Python block and every file in README and docs, page by page, as a reader goes through them.

A page's blocks are taken from top to bottom in a folder of its own. Commands of the two programs are run in this
process, with less work than they ask for (`LESS` is where that is decided); those that cannot be run here (`PARSED`)
are read by the command line's own parser, so that a wrong option fails. Python blocks of a page share their names. A
block whose first line is a comment with the name of a file is written there. Nothing is passed over: an unknown
language, an unknown program or a command within a block of text fails.
"""

from __future__ import annotations

import glob
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from om2p_cli import data, train

from . import pages
from .pages import README, ROOT, Block

MAIN = {"om2p-data": data.main, "om2p-train": train.main}
PARSERS: dict[str, Any] = {
    "om2p-data": typer.main.get_command(data.app),
    "om2p-train": typer.main.get_command(train.app),
}
OPTIONS = {
    (program, command): {"--help"}.union(*({*one.opts, *one.secondary_opts} for one in parser.params))
    for program, group in PARSERS.items()
    for command, parser in group.commands.items()
}
# Options in the prose that are other programs'.
FOREIGN = {"--index-url", "--partition", "--gres"}


def _set(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


# What a command is given besides its own words: of an option that stands there twice the last one counts.
LESS: dict[tuple[str, str], list[str]] = {
    ("om2p-data", "generate"): ["--transitions", "2000", "--quiet"],
    ("om2p-data", "collect"): ["--transitions", "300", "--quiet"],
    ("om2p-train", "run"): [
        *("--quiet", "--threads", "1"),
        *_set("run.updates=20", "run.evaluate_every=10", "run.evaluation_episodes=2"),
        *_set("network.hidden=[16]", "optimizer.batch_size=16"),
    ],
    ("om2p-train", "sweep"): ["--root", "data-of-sweeps"],  # not those of the page, which are short
    ("om2p-train", "evaluate"): ["--episodes", "3", "--quiet"],
    ("om2p-train", "render"): ["--episodes", "1", "--max-steps", "3"],
    ("om2p-train", "coverage"): ["--observations", "20", "--neighbours", "4", "--quiet"],
}
# Where a behaviour team has to be trained: few worlds, small networks, levels just above those of a fresh team.
LESS_TRAINING = [
    *_set("behavior.num_envs=32", "behavior.hidden=[32,32]", "behavior.levels={medium=105.0,expert=135.0}"),
    *_set("behavior.evaluation_episodes=200", "behavior.judging_episodes=400"),
    *_set("behavior.td3.warmup_steps=1600", "behavior.td3.batch_size=128"),
]
TRAINING = ("--fresh", "medium-replay")
# A diffusion takes many evaluations of its network for one action.
LESS_SAMPLING = _set("options.solver_evaluations=3", "options.candidates=2", "options.score_hidden=[16]")
# A sweep is run as this one (`--list` and `--sbatch` take the file as it stands).
LESS_SWEEP = """
tasks = ["cn"]
tiers = ["random"]
algorithms = ["bc"]
seeds = [0]
transitions = 500
settings = ["run.updates=20", "run.evaluate_every=10", "run.evaluation_episodes=2", "network.hidden=[8]"]
"""
# Commands that hold these words are parsed and not run.
PARSED = {
    ("--device", "cuda"): "needs a GPU",
    ("--scale", "paper"): "takes days on a CPU",
    ("--engine", "ray"): "needs a cluster; tests/train/test_ray_engine.py has one",
    ("reproduce",): "takes hours; tests/cli/test_reproduce.py runs it",
    ("publish",): "needs the runs of an experiment; tests/train/test_publication.py has some",
    ("bench",): "measures the machine at length; tests/cli/test_bench.py runs it",
    ("--wandb",): "sends to Weights & Biases",
}

CN_RUN = "om2p-train run --algo om2p --dataset om2p/cooperative-navigation/medium-v0"
CN_DATA = "om2p-data generate --env cn --tier medium"
GREEDY = "--env my_games:harvest --policy my_teams:greedy --id om2p/harvest/greedy-v0"
COLLECT = f"om2p-data collect {GREEDY} --transitions 20000"
# What a page takes for granted: commands that have been given before, and files that another page shows.
BEFORE: dict[str, list[str]] = {
    "docs/data.md": [CN_DATA, "om2p-data generate --env cn --tier expert"],
    "docs/policies.md": [CN_DATA, CN_RUN],
    "docs/runs.md": [CN_DATA, CN_RUN],
    "docs/reproduce.md": [CN_DATA, CN_RUN],
    "docs/faq.md": [CN_DATA, CN_RUN],
    "docs/extend.md": [CN_DATA, COLLECT],
} | {page: [CN_DATA] for page in pages.PAGES if page.startswith("docs/algorithms/")}
HARVEST = {"my_games.py": "docs/tutorial.md", "my_teams.py": "docs/tutorial.md"}
SHOWN_ELSEWHERE: dict[str, dict[str, str]] = {
    README: HARVEST | {"mine.toml": "docs/runs.md"},
    "docs/data.md": HARVEST,
    "docs/extend.md": HARVEST,
    "docs/scale-out.md": {"mine.toml": "docs/runs.md"},
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A page's own folder, data sets and behaviour teams; afterwards nothing of its modules is left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OM2P_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    threads, path = torch.get_num_threads(), list(sys.path)
    torch.set_num_threads(1)
    sys.path.insert(0, str(tmp_path))
    yield
    torch.set_num_threads(threads)
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", pages.PAGES)
def test_everything_on_a_page_works(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, other in SHOWN_ELSEWHERE.get(page, {}).items():
        Path(name).write_text(pages.file_in(other, name), encoding="utf-8")
    go_through(pages.read(page), page, monkeypatch, [shlex.split(command) for command in BEFORE.get(page, [])])


def go_through(text: str, page: str, monkeypatch: pytest.MonkeyPatch, before: list[list[str]] | None = None) -> None:
    """Do what a page says, after the commands that it takes for granted; fail at what does not work."""
    assert pages.indented(text) == [], f"{page}: code by indentation alone: fence it and name its language"
    check_spans(text, page)
    found = pages.blocks(text)
    if not any(block.language in ("bash", "python") for block in found):
        before = []
    for words in before or []:
        do(words, f"{page}, before", monkeypatch)
    names: dict[str, Any] = {"__name__": "__page__"}
    for block in found:
        place = f"{page}, line {block.line}"
        if block.language == "bash":
            for words in block.commands:
                do(words, place, monkeypatch)
        elif block.file is not None:
            assert block.language == Path(block.file).suffix[1:].replace("py", "python"), place
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile("\n" * block.line + block.text, str(ROOT / page), "exec"), names)
        elif block.language == "toml":
            tomllib.loads(block.text)
        else:
            assert block.language == "text", f"{place}: a block of {block.language or 'no language'!r}"
            check_text(block, place)


def do(words: list[str], place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command, or check it where it cannot be run."""
    where = f"{place}: {shlex.join(words)}"
    program, *arguments = words
    if program in MAIN:
        if arguments != ["--help"]:
            parse(program, arguments, where)
        if not any(_holds(arguments, some) for some in PARSED):
            run(program, arguments, where, monkeypatch)
    elif program == "python" and Path(arguments[0]).exists():
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(arguments[0], run_name="__main__")
    elif words[:2] == ["mkdir", "-p"]:
        Path(words[2]).mkdir(parents=True, exist_ok=True)
    else:
        check_other(words, where)


def parse(program: str, arguments: list[str], where: str) -> None:
    """Read a command as the program would."""
    command = PARSERS[program].commands.get(arguments[0])
    assert command is not None, f"{where}: {program} has no command {arguments[0]!r}"
    try:
        command.make_context(arguments[0], arguments[1:])
    except Exception as error:
        pytest.fail(f"{where}: {getattr(error, 'message', '') or error!r}")


def run(program: str, arguments: list[str], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of ours in this process, with less to do."""
    arguments = [name for word in arguments for name in (sorted(glob.glob(word)) if "*" in word else [word])]
    more = [*LESS.get((program, arguments[0]), [])]
    if arguments[0] == "generate" and any(word in arguments for word in TRAINING):
        more += LESS_TRAINING
    if arguments[0] == "run" and "ma-sfbc" in arguments:
        more += LESS_SAMPLING
    if arguments[0] == "sweep" and not {"--list", "--sbatch"} & set(arguments):
        Path(arguments[1]).write_text(LESS_SWEEP, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [program, *arguments, *more])
    code = 0
    try:
        MAIN[program]()
    except SystemExit as stop:
        code = stop.code
    assert not code, f"{where}: exit code {code}"


def check_other(words: list[str], where: str) -> None:
    """Commands of other programs that only set up what the tests run in."""
    if words[0] == "make":
        targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert targets is not None
        wanted = {word for word in words[1:] if "=" not in word}
        assert wanted <= set(targets[1].split()), f"{where}: no such target"
    elif words[:2] == ["pip", "install"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
            assert set(extra.split(",")) <= set(project["optional-dependencies"]), f"{where}: no such extra"
        assert any(word.startswith(("om2p", ".")) for word in words[2:]), where
    elif words[0] == "python" and re.match(r"(benchmarks|docs)/", words[1]):
        assert (ROOT / words[1]).is_file(), f"{where}: no such file"
    else:
        assert words == ["source", ".venv/bin/activate"], f"{where}: neither run nor checked"


def check_text(block: Block, place: str) -> None:
    """Text shows what programs print; commands belong in blocks of bash."""
    for line in block.text.splitlines():
        words = line.lstrip("$ ").split()
        hidden = words[:1] and words[0] in (*MAIN, "make", "pip", "python", "source")
        assert not hidden, f"{place}: a command in a block of text: {line}"


def check_spans(text: str, page: str) -> None:
    """Commands, options and paths within sentences: there must be such a thing."""
    for span in pages.spans(text):
        where = f"{page}: `{span}`"
        words = span.split()
        options = {word.partition("=")[0] for word in words if re.match(r"--\w", word)}
        if words[0] in MAIN and len(words) > 1:
            assert (words[0], words[1]) in OPTIONS, f"{where}: no such command"
            assert options <= OPTIONS[words[0], words[1]], f"{where}: no such option"
        elif words[0] in ("make", "pip") or (words[0] == "python" and len(words) > 1):
            check_other(shlex.split(span), where)
        elif words[0].startswith("--"):
            valid = FOREIGN.union(*OPTIONS.values())
            assert all(option in valid for one in options for option in one.split("/")), f"{where}: no such option"
        elif re.match(r"(benchmarks|cli|docs(?!/_build)|om2p_data|om2p_train|recipes|tests)/\S*$", span):
            pattern = re.sub(r"<.*?>|\{.*?\}", "*", span)
            assert glob.glob(str(ROOT / pattern)), f"{where}: no such file"


def _holds(words: list[str], some: tuple[str, ...]) -> bool:
    return any(tuple(words[start : start + len(some)]) == some for start in range(len(words)))


# What must not pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```bash\nom2p-train run --sedes 3\n```", "No such option: --sedes"),
        ("```bash\nom2p-train run --device cuda --sedes 3\n```", "No such option: --sedes"),
        ("```bash\nom2p-train runn\n```", "om2p-train has no command 'runn'"),
        ("```bash\nom2p-train export\n```", "MissingParameter"),
        ("```bash\nom2p-data show om2p/none/none-v0\n```", "exit code 2"),
        ("```bash\nls\n```", "neither run nor checked"),
        ("```bash\nmake everything\n```", "no such target"),
        ("```bash\npip install 'om2p[everything]'\n```", "no such extra"),
        ("```\nom2p-data list\n```", "a block of 'no language'"),
        ("```console\n$ om2p-data list\n```", "a block of 'console'"),
        ("```text\nom2p-data list\n```", "a command in a block of text"),
        ("Say\n\n    om2p-data list\n", "code by indentation alone"),
        ("Say `om2p-data generate --tiers medium`.", "no such option"),
        ("Say `--sedes 0-4`.", "no such option"),
        ("See `benchmarks/nothing.py`.", "no such file"),
    ],
)
def test_what_does_not_work_is_found(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception), match=re.escape(message)):
        go_through(f"{text}\n", "page", monkeypatch)


def test_python_that_fails_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        go_through("```python\na = 0\n```\nthen\n```python\n1 / a\n```\n", "page", monkeypatch)


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", pages.read(README))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
