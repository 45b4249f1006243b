"""The site builds without a warning, its tables of options are those of the records, and every page is in it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from om2p_train import algorithms
from om2p_train.compute import ComputeConfig

from . import pages
from .pages import ROOT

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def options() -> ModuleType:
    spec = importlib.util.spec_from_file_location("options", DOCS / "options.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_builds_as_make_docs_does(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    (recipe,) = re.findall(r"\$\(BIN\)/sphinx-build (.*) docs docs/_build/html", (ROOT / "Makefile").read_text())
    words = [
        sys.executable,
        "-m",
        "sphinx",
        *recipe.split(),
        "-d",
        str(tmp_path / "trees"),
        "docs",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    built = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*.html")}
    wanted = {str(path.relative_to(DOCS).with_suffix(".html")) for path in DOCS.rglob("*.md")}
    assert wanted <= built
    assert 'class="math notranslate nohighlight"' in (tmp_path / "site" / "algorithms" / "om2p.html").read_text()


def test_tables_of_options_are_up_to_date(options: ModuleType) -> None:
    found = list(options.pages())
    assert len(found) >= 7
    stale = [str(path.relative_to(ROOT)) for path, text, wanted in found if text != wanted]
    assert stale == [], "python docs/options.py brings them up to date"


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_every_algorithm_has_a_page_with_its_sections_and_all_its_options(name: str) -> None:
    text = pages.read(f"docs/algorithms/{name}.md")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Equations", "Options", "Deviations", "Recipes"]
    shown = set(re.findall(r"^\| `options\.(\w+)` \|", text, re.MULTILINE))
    assert shown == set(algorithms.ALGORITHMS[name].options_type.model_fields)


def test_the_page_of_runs_has_the_keys_of_the_compute_table() -> None:
    rows = dict(re.findall(r"^\| `compute\.(\w+)` \| `(\S+)` \|", pages.read("docs/runs.md"), re.MULTILINE))
    defaults = ComputeConfig().model_dump(mode="json")
    assert rows == {key: str(value).lower() for key, value in defaults.items()}
