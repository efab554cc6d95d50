"""What lies or stands on the ground: patches, ponds, parking lots, houses, large buildings.

Each thing is a frozen value that knows its bounds and paints itself, so that the same thing can be part
of one date or of both. Lengths are metres, angles radians.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from hisem.archive.synthetic import palette
from hisem.archive.synthetic.canvas import Canvas, Window
from hisem.archive.synthetic.geometry import Bounds, FloatArray, blob, box, coverage, smooth_step, turned
from hisem.archive.synthetic.sun import Sun, shadowed

SHADOW_STEPS = 5
"""Copies of a footprint whose union is its shadow; enough for 6 m at 1 m a pixel."""


@dataclass(frozen=True, kw_only=True)
class Thing(ABC):
    """Something around (`x`, `y`), `half_length` along `angle` and `half_width` across, `height` high."""

    x: float
    y: float
    angle: float = 0.0
    half_length: float
    half_width: float
    height: float = 0.0
    margin: ClassVar[float] = 0.0

    @property
    def raised(self) -> bool:
        """Whether it stands above the ground and casts a shadow."""
        return self.height > 0.0

    def bounds(self) -> Bounds:
        """Bounds of what it paints, its shadow under any sun included."""
        cosine, sine = abs(math.cos(self.angle)), abs(math.sin(self.angle))
        reach_x = self.half_length * cosine + self.half_width * sine + self.margin
        reach_y = self.half_length * sine + self.half_width * cosine + self.margin
        footprint = Bounds(self.x - reach_x, self.y - reach_y, self.x + reach_x, self.y + reach_y)
        return shadowed(footprint, self.height)

    def moved(self, dx: float, dy: float) -> Self:
        """The same thing elsewhere."""
        return replace(self, x=self.x + dx, y=self.y + dy)

    def local(self, window: Window, dx: float = 0.0, dy: float = 0.0) -> tuple[FloatArray, FloatArray]:
        """The window's pixels in coordinates along and across the thing, the thing moved by (dx, dy)."""
        return turned(window.x - np.float32(self.x + dx), window.y - np.float32(self.y + dy), self.angle)

    def cast(self, canvas: Canvas, sun: Sun) -> None:
        """Add its shadow; nothing for what is flat."""
        if not self.height:
            return
        window = canvas.window(self.bounds())
        dx, dy = sun.shadow(self.height)
        for step in np.linspace(0.2, 1.0, SHADOW_STEPS):
            u, v = self.local(window, dx * step, dy * step)
            canvas.cast(window, coverage(box(u, v, self.half_length, self.half_width), canvas.grid.pixel))

    @abstractmethod
    def draw(self, canvas: Canvas, sun: Sun) -> None:
        """Paint itself."""


@dataclass(frozen=True, kw_only=True)
class Patch(Thing):
    """A piece of ground of one colour, a rectangle or (with `waves`) irregular, with rows or furrows."""

    colour: FloatArray
    waves: npt.NDArray[np.float64] | None = None
    row_contrast: float = 0.0
    opacity: float = 1.0
    margin: ClassVar[float] = 1.5

    def draw(self, canvas: Canvas, sun: Sun) -> None:
        """Paint the patch with a soft edge."""
        window = canvas.window(self.bounds())
        u, v = self.local(window)
        if self.waves is None:
            distance = box(u, v, self.half_length, self.half_width)
        else:
            distance = blob(u * np.float32(self.half_width / self.half_length), v, self.half_width, self.waves)
        tone = 1.0 + np.float32(self.row_contrast) * np.sin(np.float32(2 * math.pi / 4.6) * v)
        colour = toned(self.colour, tone)
        cover = coverage(distance, canvas.grid.pixel, 1.2) * np.float32(self.opacity)
        canvas.lay(window, cover, colour)


@dataclass(frozen=True, kw_only=True)
class Pond(Thing):
    """Water with a shoreline, darker where it is deep."""

    waves: npt.NDArray[np.float64]
    margin: ClassVar[float] = 2.2

    def draw(self, canvas: Canvas, sun: Sun) -> None:
        """Paint shore, then water."""
        window = canvas.window(self.bounds())
        u, v = self.local(window)
        distance = blob(u * np.float32(self.half_width / self.half_length), v, self.half_width, self.waves)
        depth = smooth_step(-distance / np.float32(0.55 * self.half_width))[..., None]
        canvas.lay(window, coverage(distance - 1.0, canvas.grid.pixel, 0.8), palette.SHORE)
        water = palette.WATER + depth * (palette.DEEP_WATER - palette.WATER)
        canvas.lay(window, coverage(distance, canvas.grid.pixel), water)


@dataclass(frozen=True, kw_only=True)
class ParkingLot(Thing):
    """Asphalt with bays along both long sides; `cars` holds a colour number a bay, -1 for an empty one."""

    cars: npt.NDArray[np.int64]  # 2 by bays
    bay_width: ClassVar[float] = 3.0
    bay_depth: ClassVar[float] = 5.5

    def draw(self, canvas: Canvas, sun: Sun) -> None:
        """Paint asphalt, bay markings and parked cars."""
        window = canvas.window(self.bounds())
        pixel = canvas.grid.pixel
        u, v = self.local(window)
        canvas.lay(window, coverage(box(u, v, self.half_length, self.half_width), pixel), palette.CONCRETE)
        inner = box(u, v, self.half_length - 0.8, self.half_width - 0.8)
        canvas.lay(window, coverage(inner, pixel), palette.NEW_ASPHALT)

        bays = self.cars.shape[1]
        position = (u + self.bay_width * bays / 2) / self.bay_width
        number = np.floor(position).astype(np.int64)
        in_bay = (position - number - 0.5) * self.bay_width  # metres from the bay's middle
        depth = self.half_width - 1.0 - np.abs(v)  # metres from the lot's edge
        inside = (number >= 0) & (number < bays) & (depth > 0) & (depth < self.bay_depth)
        line = coverage(self.bay_width / 2 - np.abs(in_bay) - 0.25, pixel) * inside
        canvas.lay(window, line, palette.MARKING)

        side = (v > 0).astype(np.int64)
        car = self.cars[side, np.clip(number, 0, bays - 1)]
        body = coverage(box(depth - self.bay_depth / 2, in_bay, 2.2, 0.95), pixel) * (inside & (car >= 0))
        canvas.lay(window, body, palette.CARS[car])


@dataclass(frozen=True, kw_only=True)
class House(Thing):
    """A detached house with a hipped or gabled roof, a ridge along its length, eaves and a chimney."""

    roof: int
    hipped: bool
    margin: ClassVar[float] = 0.5

    def draw(self, canvas: Canvas, sun: Sun) -> None:
        """Paint the roof, each face in its own light, ridge, eaves and chimney."""
        window = canvas.window(self.bounds())
        pixel = canvas.grid.pixel
        u, v = self.local(window)
        distance = box(u, v, self.half_length, self.half_width)
        end_face = (np.abs(u) - self.half_length > np.abs(v) - self.half_width) & self.hipped
        rise_u = np.where(end_face, -np.sign(u), 0.0) * np.float32(0.42)
        rise_v = np.where(end_face, 0.0, -np.sign(v)) * np.float32(0.42)
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        light = sun.light(rise_u * cosine - rise_v * sine, rise_u * sine + rise_v * cosine)
        courses = 1.0 + 0.05 * np.sin(np.float32(2 * math.pi / 2.2) * np.where(end_face, u, v))
        roof = toned(palette.ROOFS[self.roof], light.astype(np.float32) * courses)
        canvas.lay(window, coverage(distance, pixel), roof)

        ridge_half = self.half_length - (self.half_width if self.hipped else 0.0)
        ridge = coverage(box(u, v, ridge_half, 0.3), pixel) * np.float32(0.55)
        canvas.lay(window, ridge, toned(palette.ROOFS[self.roof], np.float32(1.35)))
        eaves = coverage(np.abs(distance + 0.3) - 0.3, pixel) * np.float32(0.35)
        canvas.lay(window, eaves, palette.ROOFS[self.roof] * np.float32(0.45))
        chimney = coverage(box(u - self.half_length * 0.4, v - self.half_width * 0.3, 0.7, 0.7), pixel)
        canvas.lay(window, chimney, palette.CARS[2])


@dataclass(frozen=True, kw_only=True)
class Hall(Thing):
    """A large flat-roofed building with a parapet, skylights and plant on the roof."""

    roof: int
    skylights: int
    margin: ClassVar[float] = 0.5

    def draw(self, canvas: Canvas, sun: Sun) -> None:
        """Paint the roof, its seams, the parapet, skylights and plant with its small shadow."""
        window = canvas.window(self.bounds())
        pixel = canvas.grid.pixel
        u, v = self.local(window)
        distance = box(u, v, self.half_length, self.half_width)
        seams = 1.0 + 0.035 * np.sin(np.float32(2 * math.pi / 3.0) * u)
        canvas.lay(window, coverage(distance, pixel), toned(palette.HALLS[self.roof], seams))
        parapet = coverage(np.abs(distance + 0.5) - 0.4, pixel) * np.float32(0.6)
        canvas.lay(window, parapet, toned(palette.HALLS[self.roof], np.float32(0.6)))

        for offset in np.linspace(-0.6, 0.6, self.skylights) * self.half_length:
            strip = coverage(box(u - np.float32(offset), v + np.float32(self.half_width * 0.3), 1.0, 3.2), pixel)
            canvas.lay(window, strip * np.float32(0.75), palette.WATER)
        shade_x, shade_y = sun.shadow(1.6)
        for side in (-0.45, 0.35):
            plant_u, plant_v = u - np.float32(side * self.half_length), v - np.float32(self.half_width * 0.5)
            toward_u = shade_x * math.cos(self.angle) + shade_y * math.sin(self.angle)
            toward_v = shade_y * math.cos(self.angle) - shade_x * math.sin(self.angle)
            shadow = coverage(box(plant_u - np.float32(toward_u), plant_v - np.float32(toward_v), 1.6, 1.3), pixel)
            canvas.lay(window, shadow * np.float32(0.5), palette.DEEP_WATER)
            canvas.lay(window, coverage(box(plant_u, plant_v, 1.6, 1.3), pixel), palette.CARS[4])


def yard(building: House | Hall, width: float, opacity: float) -> Patch:
    """The paved strip around a building, `width` metres wide."""
    return Patch(
        x=building.x,
        y=building.y,
        angle=building.angle,
        half_length=building.half_length + width,
        half_width=building.half_width + width,
        colour=palette.CONCRETE,
        opacity=opacity,
    )


def toned(colour: FloatArray, tone: FloatArray | np.float32) -> FloatArray:
    """`colour` (4) with its brightness multiplied by `tone` (h by w, or one number), vegetation kept."""
    result = np.broadcast_to(colour, (*np.shape(tone), 4)).astype(np.float32)
    result[..., :3] *= np.asarray(tone)[..., None]
    return result
