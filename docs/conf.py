"""The documentation site: `make docs`. The pages read the same on GitHub, so the table of contents stands here."""

from __future__ import annotations

import tomllib
from pathlib import Path

from sphinx.application import Sphinx

_ROOT = Path(__file__).parents[1]
_CONTENTS = {
    "Learn": ["tutorial", "faq"],
    "Data": ["data"],
    "Training": ["runs", "reproduce", "findings", "policies", "scale-out", "speed"],
    "Algorithms": [
        "algorithms",
        *(f"algorithms/{name}" for name in ("bc", "om2p", "ma-cql", "omar", "ma-fql", "ma-sfbc", "vgm2p")),
    ],
    "Develop": ["extend"],
}

project = "OM2P"
author = "the authors of OM2P"
release = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "OM2P"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False


def _add_contents(app: Sphinx, name: str, source: list[str]) -> None:
    """Append the table of contents to the first page, where GitHub's readers would see a block of names."""
    if name == "index":
        for caption, pages in _CONTENTS.items():
            names = "\n".join(pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{names}\n```\n"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _add_contents)
