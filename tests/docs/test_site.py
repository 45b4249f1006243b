"""The site builds without a warning, its tables of options are those of the records, and every page is in it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.mathtext import MathTextParser

from om2p_train import algorithms
from om2p_train.compute import ComputeConfig

from . import pages
from .pages import ROOT

DOCS = ROOT / "docs"
# What matplotlib's TeX lacks, and what stands for it there.
_TEX = {
    r"\tfrac12": r"\frac{1}{2}", r"\tfrac14": r"\frac{1}{4}", r"\left\lVert": r"\|", r"\right\rVert": r"\|",
    r"\lVert": r"\|", r"\rVert": r"\|", r"\lvert": "|", r"\rvert": "|", r"\lbrace": r"\{", r"\rbrace": r"\}",
    r"\mid": "|", r"\textstyle": "", r"\thinspace": "", r"\big": "", r"\Big": "", r"\qquad": r"\quad",
    r"\text{": r"\mathrm{", r"\operatorname{": r"\mathrm{",
}  # fmt: skip


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
    words = [*recipe.split(), "-d", str(tmp_path / "trees"), "docs", str(tmp_path / "site")]
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


@pytest.mark.parametrize("page", [page for page in pages.PAGES if "$" in pages.prose(pages.read(page))])
def test_formulas_are_tex(page: str) -> None:
    formulas = re.findall(r"\$\$(.*?)\$\$|\$([^$\n]+)\$", pages.prose(pages.read(page)), re.DOTALL)
    for block, inline in formulas:
        assert not re.search(r"\\[,;!{}_]", block + inline), "GitHub takes these for escapes of Markdown"
        text = " ".join((block or inline).split())
        for name, plain in _TEX.items():
            text = text.replace(name, plain)
        MathTextParser("path").parse(f"${text}$")


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_every_algorithm_has_a_page_with_its_sections_and_all_its_options(name: str) -> None:
    text = pages.read(f"docs/algorithms/{name}.md")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Equations", "Options", "Deviations", "Recipes"]
    (table,) = re.findall(r"<!-- options: .*?<!-- end of options -->", text, re.DOTALL) or [""]
    shown = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert shown == set(algorithms.ALGORITHMS[name].options_type.model_fields)


def test_the_page_of_runs_has_the_keys_of_the_compute_table() -> None:
    rows = dict(re.findall(r"^\| `compute\.(\w+)` \| `(\S+)` \|", pages.read("docs/runs.md"), re.MULTILINE))
    defaults = ComputeConfig().model_dump(mode="json")
    assert rows == {key: str(value).lower() for key, value in defaults.items()}
