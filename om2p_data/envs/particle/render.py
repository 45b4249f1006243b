"""Pictures of particle worlds: who is where and heads where, who chases whom, what is a landmark, food or a forest."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

_PIXELS = 384
_LEGEND = 24  # height of the strip below the world, in pixels
_OVERSAMPLE = 3  # drawn larger, then shrunk: smooth edges
_VIEW = 1.35  # half-width of what is shown; agents may leave it, then they are drawn hollow at its edge
_HEADING = 0.35  # seconds of flight that the wedge in front of an agent shows

_BACKGROUND = (250, 250, 247)
_ARENA = (208, 208, 202)
_INK = (60, 60, 60)
_TEAM = ((31, 119, 180), (44, 160, 103), (148, 103, 189))
_PREDATORS = ((214, 69, 65), (230, 126, 34), (176, 58, 90))
_PREY = (39, 124, 196)
_OBSTACLE = (120, 120, 120)
_FOOD = (46, 139, 87)
_FOREST = (186, 214, 172)


def draw(scenario: ModuleType, pos: np.ndarray, vel: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Picture of one world, a legend below it.

    Team members carry their number; the prey is the blue disc in a ring. The wedge before an agent is its velocity.

    Args:
        scenario: scenario module, for sizes and roles.
        pos: [n, 2] agents, prey last.
        vel: [n, 2].
        landmarks: [L, 2].

    Returns:
        uint8 [408, 384, 3].
    """
    canvas = _Canvas()
    canvas.arena()
    # The large forests first, so that they hide nothing.
    for index in sorted(range(len(landmarks)), key=lambda m: -scenario.LANDMARK_SIZES[m]):
        canvas.disc(landmarks[index], scenario.LANDMARK_SIZES[index], _landmark_kind(scenario, index)[1])
    prey = len(pos) - 1 if scenario.HAS_PREY else None
    for index, (point, velocity) in enumerate(zip(pos, vel, strict=True)):
        radius = scenario.SIZES[index]
        color = _PREY if index == prey else (_PREDATORS if scenario.HAS_PREY else _TEAM)[index]
        canvas.heading(point, velocity, radius, color)
        canvas.disc(point, radius, color)
        if index == prey:
            canvas.ring(point, 2 * radius, color)
        else:
            canvas.label(point, radius, str(index))
    if not scenario.HAS_PREY:
        # Covering a landmark is the aim: show it on top of the agent that does.
        for point, radius in zip(landmarks, scenario.LANDMARK_SIZES, strict=True):
            canvas.ring(point, radius, _INK)
    canvas.legend(_legend(scenario))
    return canvas.picture()


def _landmark_kind(scenario: ModuleType, index: int) -> tuple[str, Color]:
    if index < scenario.NUM_OBSTACLES:
        return "obstacle", _OBSTACLE
    if not scenario.HAS_PREY:
        return "landmark", _INK
    return ("forest", _FOREST) if scenario.LANDMARK_SIZES[index] > 0.1 else ("food", _FOOD)


def _legend(scenario: ModuleType) -> dict[str, Color]:
    agents = {"predators": _PREDATORS[0], "prey": _PREY} if scenario.HAS_PREY else {"agents": _TEAM[0]}
    return agents | dict(_landmark_kind(scenario, index) for index in range(len(scenario.LANDMARK_SIZES)))


class _Canvas:
    """The plane [-1.35, 1.35]^2 on an image; lengths and points in world units, y upwards."""

    def __init__(self) -> None:
        self._scale = _PIXELS * _OVERSAMPLE / (2 * _VIEW)
        self._width, self._height = _PIXELS * _OVERSAMPLE, (_PIXELS + _LEGEND) * _OVERSAMPLE
        self._image = Image.new("RGB", (self._width, self._height), _BACKGROUND)
        self._draw = ImageDraw.Draw(self._image)
        self._font = ImageFont.load_default(size=13 * _OVERSAMPLE)

    def picture(self) -> np.ndarray:
        return np.asarray(self._image.resize((_PIXELS, _PIXELS + _LEGEND), Image.Resampling.LANCZOS))

    def arena(self) -> None:
        low, high = self._pixel(np.array([-1.0, 1.0])), self._pixel(np.array([1.0, -1.0]))
        self._draw.rectangle((*low, *high), outline=_ARENA, width=_OVERSAMPLE)

    def disc(self, point: np.ndarray, radius: float, color: Color) -> None:
        seen = bool((np.abs(point) <= _VIEW).all())
        outline = _BACKGROUND if seen else color
        self._circle(point, radius, fill=color if seen else None, outline=outline, width=_OVERSAMPLE)

    def ring(self, point: np.ndarray, radius: float, color: Color) -> None:
        self._circle(point, radius, fill=None, outline=color, width=2 * _OVERSAMPLE)

    def heading(self, point: np.ndarray, velocity: np.ndarray, radius: float, color: Color) -> None:
        speed = float(np.hypot(*velocity))
        if speed == 0.0:
            return
        ahead = velocity / speed
        side = 0.7 * radius * np.array([-ahead[1], ahead[0]])
        tip = point + (radius + speed * _HEADING) * ahead
        pale = tuple((value + 255) // 2 for value in color)
        self._draw.polygon([self._pixel(corner) for corner in (point + side, tip, point - side)], fill=pale)

    def label(self, point: np.ndarray, radius: float, text: str) -> None:
        font = ImageFont.load_default(size=1.3 * radius * self._scale)
        self._draw.text(self._pixel(point), text, fill=_BACKGROUND, font=font, anchor="mm")

    def legend(self, entries: dict[str, Color]) -> None:
        y = self._height - _LEGEND * _OVERSAMPLE / 2
        r = 4 * _OVERSAMPLE
        x = 4.0 * r
        for name, color in entries.items():
            self._draw.ellipse((x - r, y - r, x + r, y + r), fill=color)
            self._draw.text((x + 2 * r, y), name, fill=_INK, font=self._font, anchor="lm")
            x += 5 * r + self._draw.textlength(name, font=self._font)

    def _circle(self, point: np.ndarray, radius: float, fill: Color | None, outline: Color, width: int) -> None:
        x, y = self._pixel(point)
        r = radius * self._scale
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=outline, width=width)

    def _pixel(self, point: np.ndarray) -> tuple[float, float]:
        x, y = np.clip(point, -_VIEW, _VIEW)
        return (x + _VIEW) * self._scale, (_VIEW - y) * self._scale
