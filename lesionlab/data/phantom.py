"""Phantom colonoscopy: frames, masks and sequences that this program draws, to run the pipeline without a download.

A sequence is one scene: a height map of the bowel wall (tube, folds, bulges, polyps, bubbles, residue) with a colour
at each point. A frame is that scene lit by a lamp beside the lens and seen through a slightly moved camera. Lesions
differ from what imitates them by their closed rim and their surface, hardly by their colour.

Lengths are in sides (the shorter side of the frame) unless a name says pixels; x points right, y down, the origin is
the middle of the frame, heights point to the camera. Everything is computed in float64: processors differ in the last
bits of sines and exponentials, and at this precision that all but never reaches the 8-bit values.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage, sparse

from lesionlab.data.cards import PhantomLayout
from lesionlab.files import write_table
from lesionlab.progress import progress
from lesionlab.seeds import generator

CANVAS = 1.3  # side of the drawn scene, in parts of the frame: room for a moving camera
PNG_COMPRESSION = 6
THREADS = 2
SPLINE_DEVIATION = 0.48  # of a cubic B-spline over a plane of standard normal draws

POLYP_DIAMETER = (0.09, 0.45)  # sides, log-uniform
POLYP_COUNTS = (0.55, 0.3, 0.15)  # probabilities of one, two and three
FIRST_REACH = 0.2  # how far from the middle the first polyp's centre may lie: no camera move hides it
POLYP_REACH = 0.36  # and that of the others
POLYP_COLOUR = np.array([1.03, 0.88, 0.93])  # a polyp's colour against the mucosa around it, in parts
POLYP_TINT = 0.04  # and its standard deviation
SHAPES = {"sessile": 0.45, "flat": 0.25, "stalked": 0.3}  # probabilities

STOOL = np.array([0.66, 0.42, 0.13])  # RGB in [0, 1]
MUCOSA = np.array([0.86, 0.36, 0.25])
VESSEL = np.array([0.75, 0.42, 0.45])  # what a vessel leaves of the mucosa's colour
LAMP = np.array([1.0, 0.97, 0.88])  # colour of highlights
DARKEST = np.array([30.0, 14.0, 12.0]) / 255  # the depth of the lumen still differs from the black margin


@dataclass(frozen=True)
class Grid:
    """Coordinates of the scene's pixels: x and y (rows, columns) in sides, and the pixels in a side."""

    x: np.ndarray
    y: np.ndarray
    side: int

    def polar(self, centre: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
        """Distance (sides) and angle (radians) of each pixel from `centre` (x, y)."""
        dx, dy = self.x - centre[0], self.y - centre[1]
        return np.hypot(dx, dy), np.arctan2(dy, dx)


@dataclass(frozen=True)
class Scene:
    """The bowel wall: height (rows, columns) in sides, colour (rows, columns, 3) with white at 1.

    light: (rows, columns), part of the lamp's light that arrives: 0 in the depth of the lumen, above 1 close by.
    lesion: (rows, columns) bool, where a polyp is. lumen: its x, y and radius in sides.
    """

    height: np.ndarray
    colour: np.ndarray
    light: np.ndarray
    lesion: np.ndarray
    lumen: tuple[float, float, float]


def draw_phantom(layout: PhantomLayout, seed: int, folder: Path) -> None:
    """Draw all frames of `layout` into `folder`: images/, masks/ (PNG) and frames.csv (image, mask, sequence).

    Images are RGB, masks greyscale 0 or 255, both height x width pixels. A sequence depends on `seed`, its number, the
    frames' size and the camera only, so a longer data set begins with the same files.
    """
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)

    def save_sequence(sequence: int) -> list[dict[str, str]]:
        rows = []
        for number, (image, mask) in enumerate(draw_sequence(layout, seed, sequence)):
            name = f"s{sequence:03d}_f{number:02d}.png"
            row = {"image": f"images/{name}", "mask": f"masks/{name}", "sequence": f"s{sequence:03d}"}
            for kind, pixels in (("image", image), ("mask", mask)):
                Image.fromarray(pixels).save(folder / row[kind], compress_level=PNG_COMPRESSION)
            rows.append(row)
        return rows

    with ThreadPoolExecutor(THREADS) as pool:
        drawn = pool.map(save_sequence, range(layout.sequences))
        bar = progress(drawn, desc="phantom", unit="sequence", total=layout.sequences)
        write_table(folder / "frames.csv", pd.DataFrame([row for rows in bar for row in rows]))


def draw_sequence(layout: PhantomLayout, seed: int, sequence: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The frames of one sequence: (height, width, 3) uint8 RGB images and (height, width) uint8 masks of 0 and 255."""
    size = (layout.height, layout.width)
    grid = scene_grid(size)
    wall = draw_wall(grid, generator(seed, "phantom", sequence, "wall"))
    polyps = place_polyps(wall, generator(seed, "phantom", sequence, "place"))
    wall = add_distractors(wall, grid, polyps, generator(seed, "phantom", sequence, "distractors"))
    diseased = wall
    for number, polyp in enumerate(polyps):
        rng = generator(seed, "phantom", sequence, "polyp", number)
        diseased = change_around(diseased, grid, polyp, add_polyp, rng)
    wall, diseased = shade_hollows(wall, grid), shade_hollows(diseased, grid)
    bumps = wet_bumps(grid, generator(seed, "phantom", sequence, "bumps"))
    rng = generator(seed, "phantom", sequence, "camera")
    visible = visible_area(size, rng)
    gain = rng.uniform(0.8, 1.15) * (1 + rng.normal(0, 0.035, 3))  # exposure and white balance of the sequence
    gain = gain * np.array(layout.white_balance)
    lamp = rng.normal(0, 0.3, 2)
    free = lesion_free_frames(layout.frames_per_sequence, layout.lesion_free, rng)
    frames = []
    for number in range(layout.frames_per_sequence):
        rng = generator(seed, "phantom", sequence, "frame", number)
        scene = wall if number in free else diseased
        lit = illuminate(scene, grid, bumps, lamp + rng.normal(0, 0.07, 2))
        image, lesion = view(lit, scene.lesion, size, rng)
        frames.append(expose(image, lesion, visible, gain, rng))
    return frames


def lesion_free_frames(frames: int, share: float, rng: np.random.Generator) -> set[int]:
    """Which frames of a sequence show no polyp: `share` of them on average, each sequence as near to it as it can."""
    count = min(int(frames * share + rng.random()), frames)
    return set(rng.permutation(frames)[:count].tolist())


def scene_grid(size: tuple[int, int]) -> Grid:
    """The scene's pixels around a frame of `size` (height, width) pixels."""
    side = min(size)
    rows, columns = (2 * int(np.ceil(CANVAS * length / 2)) + length % 2 for length in size)
    y, x = np.mgrid[:rows, :columns].astype(float)
    return Grid((x - (columns - 1) / 2) / side, (y - (rows - 1) / 2) / side, side)


def noise(rng: np.random.Generator, grid: Grid, cell: float) -> np.ndarray:
    """Smooth noise of mean 0 and standard deviation near 1: a cubic spline over a normal draw every `cell` sides."""
    coarse = [max(4, round(length / (cell * grid.side))) for length in grid.x.shape]
    down, across = (spline(length, cells) for length, cells in zip(grid.x.shape, coarse, strict=True))
    return (across @ (down @ rng.standard_normal(coarse)).T).T / SPLINE_DEVIATION


@functools.lru_cache(maxsize=256)
def spline(length: int, cells: int) -> sparse.csr_array:
    """Sparse matrix (length, cells): the cubic B-spline of `cells` coefficients at `length` even places."""
    columns = [
        ndimage.zoom(unit, length / cells, order=3, prefilter=False, mode="reflect", grid_mode=True)
        for unit in np.eye(cells)
    ]
    return sparse.csr_array(np.stack(columns, 1))


def draw_wall(grid: Grid, rng: np.random.Generator) -> Scene:
    """The healthy wall: a tube that leads into a dark lumen, folds around it, uneven colour and vessels."""
    distance, angle = rng.uniform(0.1, 0.62), rng.uniform(0, 2 * np.pi)
    lumen = (distance * np.cos(angle), distance * np.sin(angle), rng.uniform(0.08, 0.2))
    rho, theta = grid.polar(lumen[:2])
    rho = rho * (1 + 0.12 * noise(rng, grid, 0.5))
    depth = 1 / (1 + (rho / lumen[2]) ** 2.5)
    light = (1 - depth) * (0.6 + 0.45 * np.clip(rho, 0, 1.2)) * (1 + 0.1 * noise(rng, grid, 0.6))
    near = np.clip(-0.15 - grid.x * np.cos(angle) - grid.y * np.sin(angle), 0, None)
    light = light * (1 + rng.uniform(0, 3) * near)
    height = 0.35 * rho + 0.02 * noise(rng, grid, 0.35) + 0.0016 * noise(rng, grid, 0.05)
    for _ in range(rng.integers(4, 10)):
        ridge, behind = fold(rho, theta, rng)
        height = height + ridge
        light = light * (1 - behind)
    colour = MUCOSA * (1 + rng.normal(0, [0.03, 0.1, 0.14]))
    colour = colour * (1 + 0.07 * noise(rng, grid, 0.3) + 0.035 * noise(rng, grid, 0.03))[..., None]
    colour = colour * (1 + 0.05 * noise(rng, grid, 0.25)[..., None] * np.array([-0.4, 1.0, 1.2]))
    strength = rng.uniform(0.0, 1.2) * vessels(grid, rng)
    colour = colour * (1 - np.minimum(strength, 1)[..., None] * (1 - VESSEL))
    return Scene(height, colour, light, np.zeros(height.shape, bool), lumen)


def vessels(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Vessels in [0, 1]: thin lines where smooth noise crosses zero, fading in and out."""
    trunks = np.exp(-((noise(rng, grid, 0.22) / 0.05) ** 2))
    twigs = 0.6 * np.exp(-((noise(rng, grid, 0.1) / 0.08) ** 2))
    return np.maximum(trunks, twigs) * np.clip(0.5 + noise(rng, grid, 0.2), 0, 1)


def fold(rho: np.ndarray, theta: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A haustral fold: an arc around the lumen, steep on the lumen's side. rho (sides), theta (radians): polar.

    Returns its height (sides) and the part of the light that it takes from what lies behind it, in [0, 1].
    """
    radius, width = rng.uniform(0.15, 1.1), rng.uniform(0.04, 0.12)
    turn = (theta - rng.uniform(0, 2 * np.pi)) % (2 * np.pi) - np.pi
    extent = rng.uniform(0.4, 1.6)
    arc = radius * (1 + rng.uniform(-0.25, 0.25) * turn**2 / extent**2)
    across = (rho - arc) / width
    along = 1 / (1 + np.exp((np.abs(turn) - extent) * 9))
    ridge = np.where(across > 0, np.exp(-(across**2) / 2), np.exp(-((across / 0.22) ** 2) / 2))
    behind = np.where(across < -0.25, np.exp((across + 0.25) / 1.8), 0)
    return rng.uniform(0.5, 1.1) * width * ridge * along, rng.uniform(0.15, 0.4) * behind * along


def blob(grid: Grid, spot: np.ndarray, rng: np.random.Generator, unevenness: float) -> np.ndarray:
    """Distance from the centre of a roundish patch, in parts of its radius: below 1 inside. spot: x, y, radius."""
    rho, theta = grid.polar(spot[:2])
    outline = 1 + rng.uniform(0, 0.18) * np.cos(2 * theta + rng.uniform(0, 2 * np.pi))
    for wave in (3, 4, 5):
        outline = outline + rng.normal(0, unevenness) * np.cos(wave * theta + rng.uniform(0, 2 * np.pi))
    return rho / (spot[2] * outline)


def free_spot(
    rng: np.random.Generator, radius: float, reach: float, taken: list, must: bool = False
) -> np.ndarray | None:
    """A spot (x, y, radius) within `reach` of the middle that touches none of `taken`.

    After forty draws none is returned, or the one that overlaps least if there `must` be one.
    """
    angles, distances = rng.uniform(0, 2 * np.pi, 40), reach * np.sqrt(rng.random(40))
    centres = np.stack([distances * np.cos(angles), distances * np.sin(angles)], 1)
    gap = np.full(40, np.inf)
    for x, y, r in taken:
        gap = np.minimum(gap, np.hypot(centres[:, 0] - x, centres[:, 1] - y) - r - radius)
    if gap.max() <= 0 and not must:
        return None
    best = np.argmax(gap > 0) if gap.max() > 0 else gap.argmax()
    return np.array([*centres[best], radius])


def change_around(scene: Scene, grid: Grid, spot: np.ndarray, change: Callable, rng: np.random.Generator) -> Scene:
    """The scene with `change(scene, grid, spot, rng)` made in a window around `spot` only, for speed."""
    reach = 2.2 * spot[2]
    rows = np.flatnonzero(np.abs(grid.y[:, 0] - spot[1]) < reach)
    columns = np.flatnonzero(np.abs(grid.x[0] - spot[0]) < reach)
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    names = ("height", "colour", "light", "lesion")
    part = replace(scene, **{name: getattr(scene, name)[window] for name in names})
    part = change(part, Grid(grid.x[window], grid.y[window], grid.side), spot, rng)
    planes = {name: getattr(scene, name).copy() for name in names}
    for name in names:
        planes[name][window] = getattr(part, name)
    return replace(scene, **planes)


def place_polyps(wall: Scene, rng: np.random.Generator) -> list[np.ndarray]:
    """One to three spots (x, y, radius) in sight, beside the lumen and apart from each other."""
    x, y, radius = wall.lumen
    spots = []
    for _ in range(1 + rng.choice(3, p=POLYP_COUNTS)):
        size = np.exp(rng.uniform(*np.log(POLYP_DIAMETER))) / 2
        reach = POLYP_REACH if spots else FIRST_REACH
        spot = free_spot(rng, size, reach, [(x, y, 0.8 * radius), *spots], must=not spots)
        if spot is not None:
            spots.append(spot)
    return spots


def add_polyp(scene: Scene, grid: Grid, spot: np.ndarray, rng: np.random.Generator) -> Scene:
    """The scene with a polyp at `spot`: a dome with its own relief that hides the vessels below it."""
    shape = rng.choice(list(SHAPES), p=list(SHAPES.values()))
    radius = spot[2]
    inward = blob(grid, spot, rng, 0.02) + 0.03 * noise(rng, grid, 0.6 * radius)
    steep = np.clip(1 - inward**2, 0, None) ** 0.6
    dome = {"sessile": 0.6, "flat": 0.28, "stalked": 0.8}[shape] * radius * steep
    if shape == "stalked":
        dome = np.maximum(dome, stalk(grid, spot, rng))
    inside = dome > 0.03 * radius
    relief = 0.012 * radius * noise(rng, grid, 0.3 * radius) + 0.0025 * noise(rng, grid, 0.025)
    tint = POLYP_COLOUR * (1 + rng.normal(0, POLYP_TINT, 3)) * (1 + rng.normal(0, POLYP_TINT))
    pits = 1 + 0.065 * noise(rng, grid, 0.022) + 0.06 * noise(rng, grid, 0.5 * radius)
    height, light, *colour = (
        ndimage.gaussian_filter(plane, 0.4 * radius * grid.side)
        for plane in (scene.height, scene.light, *np.moveaxis(scene.colour, -1, 0))
    )
    colour = np.stack(colour, -1) * tint * pits[..., None]
    cover = ndimage.gaussian_filter(inside.astype(float), 0.006 * grid.side)
    return replace(
        scene,
        height=scene.height + cover * (height + relief - scene.height) + dome,
        colour=scene.colour + cover[..., None] * (colour - scene.colour),
        light=scene.light + cover * (light + 0.2 * (1 - light) - scene.light),
        lesion=scene.lesion | inside,
    )


def stalk(grid: Grid, spot: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Height (sides) of a stalk: a low round bar from the middle of a polyp's head to outside its rim."""
    angle, length, width = rng.uniform(0, 2 * np.pi), spot[2] * rng.uniform(1.2, 1.6), 0.42 * spot[2]
    dx, dy = grid.x - spot[0], grid.y - spot[1]
    along = np.clip(dx * np.cos(angle) + dy * np.sin(angle), 0, length)
    aside = np.hypot(dx - along * np.cos(angle), dy - along * np.sin(angle))
    return 0.5 * np.sqrt(np.clip(width**2 - aside**2, 0, None))


def add_distractors(scene: Scene, grid: Grid, polyps: list, rng: np.random.Generator) -> Scene:
    """The scene with what imitates polyps, clear of them: bulges without a rim, residue and bubbles."""
    taken = list(polyps)
    kinds = ((add_bulge, 3, 0.08, 0.2), (add_residue, 3, 0.02, 0.09), (add_bubble, 8, 0.012, 0.04))
    for add, most, smallest, largest in kinds:
        for _ in range(rng.integers(0, most + 1)):
            spot = free_spot(rng, rng.uniform(smallest, largest), 0.55, taken)
            if spot is not None:
                scene = change_around(scene, grid, spot, add, rng)
                taken.append(spot)
    return scene


def add_bulge(scene: Scene, grid: Grid, spot: np.ndarray, rng: np.random.Generator) -> Scene:
    """The scene with a hill of healthy mucosa."""
    hill = np.exp(-2.2 * blob(grid, spot, rng, 0.04) ** 2)
    return replace(scene, height=scene.height + rng.uniform(0.35, 0.6) * spot[2] * hill)


def add_residue(scene: Scene, grid: Grid, spot: np.ndarray, rng: np.random.Generator) -> Scene:
    """The scene with a spot of stool."""
    ragged = 0.25 * np.clip(noise(rng, grid, 0.04), -2, 2)
    inside = np.clip(4 * (1 - blob(grid, spot, rng, 0.05) + ragged), 0, 1)
    colour = STOOL * rng.uniform(0.8, 1.25) * (1 + 0.08 * noise(rng, grid, 0.02))[..., None]
    cover = rng.uniform(0.5, 0.95) * inside[..., None]
    return replace(scene, height=scene.height + 0.012 * inside, colour=scene.colour + cover * (colour - scene.colour))


def add_bubble(scene: Scene, grid: Grid, spot: np.ndarray, rng: np.random.Generator) -> Scene:
    """The scene with a clear bubble: a thin bright rim, a round surface that mirrors the lamp."""
    inward = blob(grid, spot, rng, 0.0)
    rim = np.exp(-(((inward - 0.92) / 0.14) ** 2))[..., None]
    dome = 0.7 * spot[2] * np.sqrt(np.clip(1 - inward**2, 0, None))
    return replace(scene, height=scene.height + dome, colour=scene.colour + 0.45 * rim * (LAMP - scene.colour))


def wet_bumps(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Unevenness of the film of water (sides), which scatters the highlights; deeper where the wall is wet."""
    return 0.0042 * noise(rng, grid, 0.035) * np.clip(0.7 + noise(rng, grid, 0.3), 0.45, 1.5)


def shade_hollows(scene: Scene, grid: Grid) -> Scene:
    """The scene with less light where the wall lies below its surroundings: along rims and behind folds."""
    hollow = ndimage.gaussian_filter(scene.height, 0.025 * grid.side) - scene.height
    return replace(scene, light=scene.light * np.clip(1 - 9 * np.clip(hollow, 0, None), 0.4, 1))


def illuminate(scene: Scene, grid: Grid, bumps: np.ndarray, lamp: np.ndarray) -> np.ndarray:
    """The lit scene (rows, columns, 3), 1 is white. lamp: x and y of the light's direction, its z is 1."""
    direction = np.array([*lamp, 1.0]) / np.sqrt(1 + lamp @ lamp)
    halfway = direction + np.array([0, 0, 1.0])
    halfway /= np.sqrt(halfway @ halfway)
    diffuse = facing(scene.height, direction, grid.side)
    mirror = facing(scene.height + bumps, halfway, grid.side)
    shade = scene.light * (0.2 + 0.8 * diffuse)
    glint = scene.light[..., None] * np.clip((mirror - 0.992) / 0.006, 0, 1)[..., None] * LAMP
    return scene.colour * shade[..., None] * 1.25 + glint * 0.9


def facing(height: np.ndarray, direction: np.ndarray, side: int) -> np.ndarray:
    """Cosine, not below 0, between the surface's normal and a unit vector (x, y, z)."""
    down, right = np.gradient(height, 1 / side)
    cosine = (direction[2] - right * direction[0] - down * direction[1]) / np.sqrt(1 + right**2 + down**2)
    return np.clip(cosine, 0, None)


def view(
    lit: np.ndarray, lesion: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What a slightly moved camera sees: image (height, width, 3) and lesion (height, width) bool."""
    angle, zoom = rng.normal(0, 0.12), np.exp(np.clip(rng.normal(0, 0.08), -0.16, 0.16))
    shift = np.clip(rng.normal(0, 0.03, 2), -0.06, 0.06) * min(size)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
    centre = (np.array(lesion.shape) - 1) / 2 + shift
    offset = centre - turn @ ((np.array(size) - 1) / 2)
    planes = [
        ndimage.affine_transform(plane, turn, offset, size, order=1, mode="nearest")
        for plane in (*np.moveaxis(lit, -1, 0), lesion.astype(float))
    ]
    return np.stack(planes[:3], -1), planes[3] > 0.5


def visible_area(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Where the endoscope shows a picture, (height, width) bool: an octagon or a rounded square, less a corner box."""
    height, width = size
    y, x = np.mgrid[:height, :width].astype(float)
    across, down = np.abs(2 * (x + 0.5) / width - 1), np.abs(2 * (y + 0.5) / height - 1)
    margins = 1 - rng.uniform(0, 0.12, 2)
    across, down = across / margins[0], down / margins[1]
    if rng.random() < 0.6:
        inside = (np.maximum(across, down) < 1) & (across + down < rng.uniform(1.45, 1.75))
    else:
        power = rng.uniform(2.6, 6)
        inside = across**power + down**power < 1
    if rng.random() < 0.35:
        inside &= ~((x < rng.uniform(0.15, 0.27) * width) & (y > (1 - rng.uniform(0.15, 0.27)) * height))
    return inside


def expose(
    image: np.ndarray, lesion: np.ndarray, visible: np.ndarray, gain: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The camera: lens blur, white balance, film curve, sensor noise, 8 bits; black and no lesion outside `visible`."""
    image = ndimage.gaussian_filter(image, (*[rng.uniform(0.002, 0.005) * min(visible.shape)] * 2, 0))
    image = image * gain * rng.uniform(0.93, 1.07) * (1 + rng.normal(0, 0.01, 3))
    image = 1 - np.exp(-1.55 * image)
    grain = 0.014 * rng.standard_normal(image.shape)
    image = np.clip(np.maximum(image, DARKEST) + grain, DARKEST, 1) * visible[..., None]
    return np.rint(255 * image).astype(np.uint8), (255 * (lesion & visible)).astype(np.uint8)
