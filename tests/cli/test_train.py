"""om2p-train: one line with exit code 2 for whatever is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from .conftest import RANDOM_ID, TINY_RUN, Run, assert_one_line, contents


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algo", "om2pp"], r"unknown recipe 'om2pp': did you mean 'om2p'"),
        (["--algo", "missing.toml"], r"recipe file missing\.toml does not exist; bundled recipes: bc, bc-flow"),
        (["--dataset", "cn-medium"], r"malformed data set id 'cn-medium'"),
        (
            ["--dataset", "om2p/cooperative-navigation/randm-v0"],
            rf"no data set om2p/.*/randm-v0 in datasets: did you mean {RANDOM_ID}\? ",
        ),
        (["--scale", "papr"], r"unknown scale 'papr': did you mean 'paper'"),
        (["--set", "network.hiden=[8]"], r"recipe bc: unknown key 'network\.hiden': did you mean 'network\.hidden'"),
        (["--set", "optons.hidden=[8]"], r"recipe bc: unknown key 'optons': did you mean 'options'"),
        (["--set", "run.updates=many"], r"recipe bc: run\.updates = 'many' is wrong: Input should be a valid integer"),
        (["--set", "run.updates=0"], r"recipe bc: run\.updates = 0 is wrong: Input should be greater than 0"),
        (["--set", "network.hidden=[0]"], r"recipe bc: network\.hidden\.0 = 0 is wrong"),
        (["--set", "run=5"], r"recipe bc: run = 5 is wrong"),
        (["--set", "run.updates"], r"--set takes key=value"),
        (["--seeds", "a"], r"--seeds takes numbers and ranges such as 0-4 or 0,2,5, not 'a'"),
        (["--seeds", ""], r"--seeds takes numbers"),
        (["--seeds", "-1"], r"--seeds takes numbers"),
        (["--seeds", "3-1"], r"--seeds '3-1' names no seed: write the smaller number first"),
        (["--seeds", "0-999999999"], r"--seeds '0-999999999' names more than 1,000 seeds"),
        pytest.param(
            ["--device", "cuda"],
            r"device 'cuda' cannot be used: .*'cpu' always can",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
        (["--set", "optimizer.rho=0"], r"recipe bc: optimizer\.rho = 0 is wrong: Input should be greater than 0"),
        (["--set", "optimizer.rho=1.5"], r"recipe bc: optimizer\.rho = 1\.5 is wrong: Input should be less than or"),
        (["--set", "optimizer.batch_size=501"], r"optimizer\.batch_size is 501 and .* has 500 transitions: set it low"),
        (["--set", "options.eta=0.5"], r"recipe bc: unknown key 'options\.eta'"),
        (["--resume", "--out", "runs"], r"runs is not empty and not only a run"),
        (["--resume", "--out", "runs/bc", "--seeds", "0"], r"seeds are \[0, 3\] in runs/bc and \[0\] here: choose"),
        (["--resume", "--out", "runs/bc", "--algo", "om2p"], r"unknown key|algorithm is bc in runs/bc and om2p here"),
        (["--resume", "--overwrite"], r"--overwrite and --resume exclude each other"),
        (["--seeds", "1,1"], r"seeds must be different numbers from 0 up, not \[1, 1\]"),
        (["--device", "gpu"], r"there is no kind of device 'gpu': take cpu or cuda"),
        (["--device", "meta"], r"device 'meta' cannot be used: .*'cpu' always can"),
        (["--device", "hpu"], r"device 'hpu' cannot be used: .*'cpu' always can"),
        (["--out", "runs/bc"], r"runs/bc holds a run already: choose another --out, or add --overwrite"),
        (["--out", "runs"], r"runs is not empty and not only a run"),
        (["--out", "file"], r"cannot write to file: Not a directory"),
        (["--out", "file/below"], r"cannot write to file/below: Not a directory"),
        (["--root", "elsewhere"], rf"no data set {RANDOM_ID} in elsewhere: to make it, run: om2p-data generate"),
    ],
)
def test_run_refuses(arguments: list[str], message: str, run: Run, here: Path) -> None:
    before = contents(here)
    # click lets the last of two win; --set is repeatable, and later settings win too.
    assert_one_line(run("om2p-train", *TINY_RUN, "--out", "new", *arguments), message)
    assert contents(here) == before


def test_run_refuses_options_that_make_no_sense_together(run: Run, here: Path) -> None:
    before = contents(here)
    arguments = ["run", "--dataset", RANDOM_ID, "--out", "new", "--set", "options.xi=[-2, 0, 0, 0]"]
    assert_one_line(run("om2p-train", *arguments), r"xi = \[-2\.0, .*must be greater than -1")
    assert contents(here) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('algorithm = "om2q"\n', r"unknown algorithm 'om2q': did you mean 'om2p'"),
        ("[run]\nupdates = 3\n", r"mine\.toml: key 'algorithm' is missing; valid: bc, om2p"),
        ('base = "bc"\n[optins]\n', r"mine\.toml: unknown key 'optins': did you mean 'options'"),
        ('base = "bc"\n[options]\neta = 1.0\n', r"mine\.toml: unknown key 'options\.eta'"),
        ('base = "bd"\n', r"unknown recipe 'bd': did you mean 'bc'"),
        ('base = "bc"\n[scale.cpuu.run]\n', r"mine\.toml: unknown section in \[scale\] 'cpuu': did you mean 'cpu'"),
        ('base = "bc"\n[task.hc.options]\n', r"mine\.toml: unknown section in \[task\] 'hc'"),
        ("algorithm = bc\n", r"mine\.toml is not valid TOML: "),
        ("algorithm = 3\n", r"mine\.toml: algorithm = 3 is wrong: it must be a name"),
        ('base = ["bc"]\n', r"mine\.toml: base = \['bc'\] is wrong: it must be a name"),
        ('base = "mine.toml"\n', r"mine\.toml: base = 'mine\.toml' leads back to itself"),
        ('base = "bc"\nscale = 3\n', r"mine\.toml: scale = 3 is wrong: it must be a table"),
        ('base = "bc"\n[task]\ncooperative-navigation = 3\n', r"navigation = 3 is wrong: it must be a table"),
        ('base = "bc"\n[task.cooperative-navigation]\nrandom = 3\n', r"random = 3 is wrong: it must be a table"),
        ('base = "bc"\n[task.cooperative-navigation.randm]\n', r"unknown key in .* 'randm': did you mean 'random'"),
        (
            'base = "bc"\n[scale.cpu.optins]\n',
            r"mine\.toml: unknown key in \[scale\.cpu\] 'optins': did you mean 'options'",
        ),
    ],
)
def test_run_refuses_a_recipe_file(text: str, message: str, run: Run, here: Path) -> None:
    (here / "mine.toml").write_text(text)
    before = contents(here)
    assert_one_line(run("om2p-train", *TINY_RUN, "--algo", "mine.toml", "--out", "new"), message)
    assert contents(here) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device here")
def test_run_refuses_a_missing_gpu(run: Run, here: Path) -> None:
    assert_one_line(run("om2p-train", *TINY_RUN, "--out", "new", "--device", "cuda"), "device 'cuda' cannot be used: ")
    assert not (here / "new").exists()


def test_a_data_set_of_a_tier_of_its_own_can_be_trained_on(run: Run, here: Path) -> None:
    """Somebody's mixture has no section in the recipes; it gets the task's."""
    folder = here / "datasets" / "om2p" / "cooperative-navigation"
    (folder / "random-v0").rename(folder / "mixture-v0")
    metadata = folder / "mixture-v0" / "data" / "metadata.json"
    metadata.write_text(metadata.read_text().replace("random-v0", "mixture-v0").replace('"random"', '"mixture"'))
    found = run("om2p-train", *TINY_RUN, "--dataset", "om2p/cooperative-navigation/mixture-v0")
    assert (found.code, found.err) == (0, "")
    assert found.out.endswith("\nin runs/cooperative-navigation/mixture/bc\n")


def rewrite_facts(folder: Path, **changes: object) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_report_refuses(run: Run, here: Path) -> None:
    bad = here / "runs" / "bad"

    def fails(message: str, *arguments: object) -> None:
        before = contents(here)
        assert_one_line(run("om2p-train", "report", *arguments), message)
        assert contents(here) == before

    fails(r"datasets is not a run folder and holds none: no run\.json there or below", "datasets")
    fails(r"missing does not exist", "runs/bc", "missing")
    fails(r"file holds no run records", "file")
    shutil.copytree("runs/bc", bad)
    rewrite_facts(bad, dataset_hash="other")
    fails(
        rf"{RANDOM_ID} was another data set for the run in .*bad than for the one in runs/bc \(.*apart", "runs/bc", bad
    )
    rewrite_facts(bad, finished=False)
    fails(r"the run in .*bad has not finished", bad)
    (here / "few").mkdir()
    shutil.copytree(bad, here / "few" / "one")
    fails(r"none of these runs can be reported: few.one has not finished", "few")
    rewrite_facts(bad, finished=True, seeds=None)
    fails(r"the run in .*bad is damaged: ValidationError: seeds", bad)
    rewrite_facts(bad, versions={"om2p": "0.0.1"})
    fails(r"the run in .*bad was written by om2p 0\.0\.1 and cannot be read by .*train it again", bad)
    (bad / "run.json").write_text("{")
    fails(r"the run in .*bad is damaged: JSONDecodeError", bad)
    shutil.copy("runs/bc/run.json", bad)
    (bad / "evaluations.csv").unlink()
    fails(r"the run in .*bad is damaged: FileNotFoundError", bad)


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_report_to_where_nothing_can_be_written(out: str, run: Run, here: Path) -> None:
    before = contents(here)
    found = run("om2p-train", "report", "runs/bc", "--out", out)
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert found.err.startswith(f"error: cannot write to {out}: ")
    assert contents(here) == before


def test_render_refuses(run: Run, here: Path) -> None:
    policy = Path("runs/bc/policies/seed0.safetensors")
    (here / "damaged.safetensors").write_bytes(policy.read_bytes()[:-8])
    before = contents(here)
    for arguments, message in (
        (["runs/bc/policies/seed1.safetensors"], r"policy file runs/bc/policies/seed1\.safetensors does not exist"),
        (["runs/bc"], r"policy file runs/bc is a folder"),
        (["file"], r"cannot read the policy file: "),
        (["damaged.safetensors"], r"cannot read the policy damaged\.safetensors: "),
        (["runs/bc/checkpoint.safetensors"], r"cannot read the policy runs/bc/checkpoint\.safetensors: "),
        ([policy, "--max-steps", 1, "--out", "file/below.gif"], r"cannot write file/below\.gif: "),
    ):
        assert_one_line(run("om2p-train", "render", *arguments), message)
    assert contents(here) == before
