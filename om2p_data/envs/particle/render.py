"""Pictures of particle worlds: who is where, who chases whom, what is an obstacle, a landmark, food or a forest."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from PIL import Image, ImageDraw

_PIXELS = 384
_OVERSAMPLE = 3  # drawn larger, then shrunk: smooth edges
_VIEW = 1.35  # half-width of what is shown; agents may leave it, then they are drawn at its edge

_BACKGROUND = (250, 250, 247)
_ARENA = (208, 208, 202)
_TEAM = ((31, 119, 180), (44, 160, 103), (148, 103, 189))
_PREDATORS = ((214, 69, 65), (230, 126, 34), (176, 58, 90))
_PREY = (39, 124, 196)
_LANDMARK = (60, 60, 60)
_OBSTACLE = (120, 120, 120)
_FOOD = (46, 139, 87)
_FOREST = (186, 214, 172)


def _landmark_color(scenario: ModuleType, index: int) -> tuple[int, int, int]:
    if index < scenario.NUM_OBSTACLES:
        return _OBSTACLE
    if not scenario.HAS_PREY:
        return _LANDMARK
    return _FOREST if scenario.LANDMARK_SIZES[index] > 0.1 else _FOOD


def draw(scenario: ModuleType, pos: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Picture of one world.

    Args:
        scenario: scenario module, for sizes and roles.
        pos: [n, 2] agents, prey last.
        landmarks: [L, 2].

    Returns:
        uint8 [384, 384, 3].
    """
    size = _PIXELS * _OVERSAMPLE
    picture = Image.new("RGB", (size, size), _BACKGROUND)
    canvas = ImageDraw.Draw(picture)

    def pixel(point: np.ndarray) -> tuple[float, float]:
        x, y = np.clip(point, -_VIEW, _VIEW)
        return (x / _VIEW + 1) * size / 2, (1 - y / _VIEW) * size / 2

    def disc(point: np.ndarray, radius: float, fill: tuple[int, int, int], outline: tuple[int, int, int]) -> None:
        x, y = pixel(point)
        r = radius / _VIEW * size / 2
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=outline, width=_OVERSAMPLE)

    low, high = pixel(np.array([-1.0, 1.0])), pixel(np.array([1.0, -1.0]))
    canvas.rectangle((*low, *high), outline=_ARENA, width=_OVERSAMPLE)
    # The large forests first, so that they hide nothing.
    for index in sorted(range(len(landmarks)), key=lambda m: -scenario.LANDMARK_SIZES[m]):
        color = _landmark_color(scenario, index)
        disc(landmarks[index], scenario.LANDMARK_SIZES[index], color, color)
    last = len(pos) - 1
    for index, point in enumerate(pos):
        is_prey = scenario.HAS_PREY and index == last
        color = _PREY if is_prey else (_PREDATORS if scenario.HAS_PREY else _TEAM)[index]
        disc(point, scenario.SIZES[index], color, (255, 255, 255))
    return np.asarray(picture.resize((_PIXELS, _PIXELS), Image.Resampling.LANCZOS))
