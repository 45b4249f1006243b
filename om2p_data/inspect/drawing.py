"""How figures look, whatever the user's own settings are, and how they become files."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from om2p_data.errors import UserError
from om2p_data.storage import reason, write_whole

_DPI = 130


@dataclass(frozen=True)
class Theme:
    """Colours of all figures; the series are told apart by people who see few colours too."""

    paper: str
    ink: str
    faint: str
    series: tuple[str, ...]
    density: tuple[str, ...]


LIGHT = Theme(
    "#ffffff",
    "#23272e",
    "#c9ced6",
    ("#0072b2", "#d55e00", "#009e73", "#b3589a", "#9a7d00", "#3a9bd9", "#7a5c3e", "#5d6470"),
    ("#eef4fa", "#9dc6e4", "#3f8fc4", "#0b5a94", "#082f52"),
)
DARK = Theme(
    "#16191f",
    "#e4e7ec",
    "#454c58",
    ("#56b4e9", "#f08b4b", "#3fcfa2", "#dd8fc6", "#e6cf4d", "#8fa8ff", "#c4a484", "#a9b1bd"),
    ("#1d2733", "#1f4e78", "#2f86bd", "#7cc4ec", "#e8f6ff"),
)

Draw = Callable[[Theme], Figure]


def cycle(theme: Theme, count: int) -> list[str]:
    return [theme.series[index % len(theme.series)] for index in range(count)]


def styled(theme: Theme) -> Any:
    """The look of all figures, whatever the user's own settings are."""
    return mpl.rc_context(
        {
            **{key: mpl.rcParamsDefault[key] for key in ("font.family", "axes.prop_cycle", "figure.dpi")},
            "font.size": 10,
            "figure.facecolor": theme.paper,
            "savefig.facecolor": theme.paper,
            "axes.facecolor": theme.paper,
            "axes.edgecolor": theme.faint,
            "axes.labelcolor": theme.ink,
            "axes.titlecolor": theme.ink,
            "text.color": theme.ink,
            "xtick.color": theme.ink,
            "ytick.color": theme.ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": theme.faint,
            "grid.alpha": 0.4,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "pdf.fonttype": 42,  # letters as letters, which publishers ask for
        }
    )


def image(draw: Draw, theme: Theme = LIGHT, file_type: str = "png") -> bytes:
    """A figure as the contents of a file, the same for the same figure. `file_type`: png or pdf."""
    out = io.BytesIO()
    dates = {"CreationDate": None} if file_type == "pdf" else {}
    # The colours of texts are looked up when they are drawn, not when they are made.
    with styled(theme):
        draw(theme).savefig(out, format=file_type, dpi=_DPI, metadata=dates, bbox_inches="tight")
    return out.getvalue()


def save_all(
    drawn: Mapping[str, Draw], folder: Path, theme: Theme = LIGHT, file_types: Sequence[str] = ("png",)
) -> list[Path]:
    """Write figures into files `<name>.<type>` of a folder.

    Raises:
        UserError: the folder cannot be written.
    """
    paths = [folder / f"{name}.{file_type}" for name in drawn for file_type in file_types]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            content = image(drawn[path.stem], theme, path.suffix[1:])
            write_whole(path, lambda partial, content=content: partial.write_bytes(content))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {reason(error)}") from error
    return paths
