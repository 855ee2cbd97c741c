"""The generated pictures: a lit, textured relief with at most one object on it, and everything known about it.

No photograph goes into them. A picture is a height field (undulations, folds, small bumps and one object), coloured
with two of MATERIALS textures, lit by a near lamp, blurred, cropped by black margins and exposed at random.
"""

from dataclasses import dataclass

import numpy as np

from lesionlab.pretext.fields import Painter, per_picture
from lesionlab.seeds import generator

OBJECTS = ("none", "dome", "lobed", "plateau", "pit", "ring", "tube", "ball")
MATERIALS = 36
MAP_SIZE = 8
MAPS = ("mask", "height", "shade", "highlight")
SCALARS = (
    "red", "green", "blue", "tint_red", "tint_green", "tint_blue", "blur", "grain", "undulation", "folds", "bumps",
    "vessels", "gloss", "lumen", "exposure", "margin", "surface_slope", "surface_scale", "object_slope",
    "object_scale",
)  # fmt: skip


@dataclass(frozen=True)
class Pictures:
    """Pictures and their labels.

    images: (n, size, size, 3) uint8 RGB.
    classes: (n, 3) int32: index in OBJECTS, material of the surface, material of the object (MATERIALS: no object).
    maps: (n, MAP_SIZE, MAP_SIZE, len(MAPS)) float16; mask in [0, 1], the others about standardised.
    scalars: (n, len(SCALARS)) float16, each uniform or about standardised.
    """

    images: np.ndarray
    classes: np.ndarray
    maps: np.ndarray
    scalars: np.ndarray


def _materials() -> dict[str, np.ndarray]:
    """What distinguishes the textures, the same in every batch: (MATERIALS, ...) each."""
    rng = generator(0, "pretext", "materials")

    def uniform(low, high, *shape):
        return rng.uniform(low, high, (MATERIALS, *shape)).astype("float32")

    kind = np.arange(MATERIALS) % 6  # smooth, noise, vessels, spots, streaks, cells
    step = (np.arange(MATERIALS) // 6) / (MATERIALS // 6 - 1)  # 0 coarse to 1 fine
    colour = rng.standard_normal((MATERIALS, 2, 3)).astype("float32") * 0.6
    colour += rng.standard_normal((MATERIALS, 2, 1)).astype("float32")
    colour /= np.linalg.norm(colour, axis=2, keepdims=True)
    return {
        "slope": np.where(kind == 0, 4.0, uniform(1.0, 3.0)),
        "scale": 1.0 + 11 * step**1.5,
        "stretch": np.where(kind == 4, uniform(5.0, 9.0), 1.0),
        "amount": np.select([kind == 0, (kind == 1) | (kind == 4)], [0.01 + 0.15 * step, uniform(0.2, 0.35)], 0.06),
        "line_slope": np.where(kind == 2, uniform(2.0, 3.0), 5.0),
        "line_scale": np.where(kind == 2, 1 + 4 * step, 3 + 7 * step),
        "line_width": uniform(0.08, 0.3),
        "lines": np.isin(kind, (2, 5)) * uniform(0.35, 0.7),
        "spots": (kind == 3) * uniform(0.4, 0.8) * rng.choice([-1, 1], MATERIALS),
        "spot_level": uniform(0.6, 1.3),
        "colour": colour,
        "relief": uniform(0.0, 1.0) ** 2 * 0.02,
    }


def _texture(painter: Painter, material: np.ndarray, table: dict) -> tuple[np.ndarray, np.ndarray]:
    """Albedo offset (n, size, size, 3) and small relief (n, size, size) of the material of each picture."""
    pick = {key: value[material] for key, value in table.items()}
    zoom = np.exp(painter.uniform(-0.15, 0.15))
    angle = painter.uniform(0, np.pi)
    fine = painter.noise(pick["slope"], pick["scale"] * zoom, pick["stretch"], angle)
    field = painter.noise(pick["line_slope"], pick["line_scale"] * zoom)
    lines = np.exp(-((field / per_picture(pick["line_width"])) ** 2)) * np.clip(0.8 + 0.5 * fine, 0, 1.5)
    spots = 1 / (1 + np.exp(np.clip(-8 * (field - per_picture(pick["spot_level"])), -30, 30)))
    marks = per_picture(pick["spots"]) * spots - per_picture(pick["lines"]) * lines
    colour = pick["colour"][:, :, None, None, :]
    offset = (per_picture(pick["amount"]) * fine)[..., None] * colour[:, 0] + marks[..., None] * np.abs(colour[:, 1])
    return offset, per_picture(pick["relief"]) * (fine + 2 * marks)


def _clutter(painter: Painter, warp: np.ndarray, effort: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Height of up to three folds and three small bumps; how much of each there is (n,)."""
    height = np.zeros((painter.count, painter.size, painter.size), "float32")
    folds, bumps = np.zeros(painter.count, "float32"), np.zeros(painter.count, "float32")
    for chance in (0.45, 0.3, 0.2):
        angle, offset, width = painter.uniform(0, 2 * np.pi), painter.uniform(-1, 1), painter.uniform(0.06, 0.35)
        amount = painter.uniform(0.1, 0.5) * painter.chance(chance) * effort
        bend = painter.uniform(-0.8, 0.8)
        along = painter.x * per_picture(np.cos(angle)) + painter.y * per_picture(np.sin(angle))
        across = painter.y * per_picture(np.cos(angle)) - painter.x * per_picture(np.sin(angle))
        distance = (across - per_picture(offset) + per_picture(bend) * along**2 + 0.25 * warp) / per_picture(width)
        step = per_picture(painter.chance(0.4))
        profile = (1 - step) * np.exp(-(distance**2)) + step / (1 + np.exp(np.clip(-4 * distance, -30, 30)))
        height += per_picture(amount * np.sqrt(width / 0.2)) * profile
        folds += amount
    for chance in (0.35, 0.25, 0.15):
        radius = painter.uniform(0.08, 0.3)
        amount = painter.uniform(0.3, 1.0) * painter.chance(chance) * effort
        shape = painter.outline(
            painter.uniform(-1, 1), painter.uniform(-1, 1), radius,
            np.exp(painter.uniform(-0.4, 0.4)), painter.uniform(0, np.pi), 0.15 * warp,
        )  # fmt: skip
        height += per_picture(amount * radius * np.where(painter.chance(0.25), -1, 1)) * np.exp(-(shape**2))
        bumps += amount
    return height, folds, bumps


def _object(painter: Painter, kind: np.ndarray, warp: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Height, mask in [0, 1] and contact shadow of the one object of each picture, by index in OBJECTS."""
    spread = np.where(painter.chance(0.6), 0.15, 0.6)
    radius = painter.uniform(0.3, 0.9)
    tube, lobed = kind == 6, kind == 2
    elongation = np.where(tube, np.exp(painter.uniform(0.6, 0.9)), np.exp(painter.uniform(-0.25, 0.25)))
    radius = np.where(tube, radius * 0.8, radius)
    lobes = painter.noise(np.full(painter.count, 4.0), painter.uniform(2.0, 6.0))
    wobble = per_picture(painter.uniform(0, 0.12)) * warp + per_picture(lobed * painter.uniform(0.08, 0.2)) * lobes
    distance = painter.outline(
        spread * painter.uniform(-1, 1), spread * painter.uniform(-1, 1), radius, elongation,
        painter.uniform(0, np.pi), wobble,
    )  # fmt: skip
    inside = np.clip(1 - distance**2, 0, None)
    dome = inside ** per_picture(painter.uniform(0.9, 1.8))
    ball = np.sqrt(inside)
    plateau = 1 / (1 + np.exp(np.clip((distance - 0.9) * 12, -30, 30)))
    ring = np.exp(-(((distance - 0.75) / 0.25) ** 2))
    profiles = np.stack([0 * dome, dome, dome * (1 + 0.3 * lobes), 0.3 * plateau, -dome, 0.6 * ring, dome, ball])
    height = np.take_along_axis(profiles, kind[None, :, None, None], 0)[0]
    steep = painter.uniform(0.5, 1.2) * radius
    mask = 1 / (1 + np.exp(np.clip((distance - 1) * per_picture(radius * 25), -30, 30)))
    rim = np.exp(-(((distance - 1.05) / 0.12) ** 2)) * (distance > 1) * per_picture((kind == 7) | lobed)
    present = per_picture(kind > 0)
    return height * per_picture(steep), mask * present, rim * per_picture(painter.uniform(0, 0.6))


def _colours(painter: Painter) -> np.ndarray:
    """Base colours (n, 3) in [0, 1]: two thirds warm, the rest of any hue."""
    hue = np.where(painter.chance(0.65), painter.rng.normal(0.03, 0.05, painter.count), painter.uniform(0, 1))
    saturation, value = painter.uniform(0.05, 0.85), painter.uniform(0.45, 1.0)
    wheel = np.abs((hue[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    return (value[:, None] * (1 - saturation[:, None] * (1 - np.clip(wheel, 0, 1)))).astype("float32")


def _shrink(field: np.ndarray) -> np.ndarray:
    """Mean over the cells of a MAP_SIZE grid."""
    count, size = field.shape[:2]
    cell = size // MAP_SIZE
    return field[:, : cell * MAP_SIZE, : cell * MAP_SIZE].reshape(count, MAP_SIZE, cell, MAP_SIZE, cell).mean((2, 4))


@dataclass(frozen=True)
class _Light:
    """lit: brightness of a white surface, highlight: what the gloss adds, (n, size, size).
    lamp: light that arrives there. gloss, lumen (the dark hole): their amounts (n,).
    """

    lit: np.ndarray
    highlight: np.ndarray
    gloss: np.ndarray
    lumen: np.ndarray
    lamp: np.ndarray


def _illuminate(painter: Painter, height, roughness, mask, rim, warp) -> _Light:
    """A near lamp on the relief: diffuse light, highlights (Blinn-Phong), dark crevices, contact shadow, dark hole."""
    size, ones = painter.size, np.ones(painter.count, "float32")
    slope_y, slope_x = np.gradient(height + roughness, 2 / size, axis=(1, 2))
    length = np.sqrt(1 + slope_x**2 + slope_y**2)
    near = per_picture(painter.uniform(0, 0.8))
    light_x = per_picture(painter.rng.normal(0, 0.5, painter.count)) - near * painter.x
    light_y = per_picture(painter.rng.normal(0, 0.5, painter.count)) - near * painter.y
    light = np.sqrt(1 + light_x**2 + light_y**2)
    shade = np.clip((1 - slope_x * light_x - slope_y * light_y) / (length * light), 0, None)
    half = np.sqrt(light_x**2 + light_y**2 + (1 + light) ** 2)
    glance = np.clip((1 + light - slope_x * light_x - slope_y * light_y) / (length * half), 0, 1)
    gloss = painter.uniform(0, 1) * painter.chance(0.6)
    highlight = per_picture(gloss) * glance ** per_picture(np.exp(painter.uniform(2.5, 6.0)))
    glints = painter.noise(2.5 * ones, painter.uniform(4, 12))
    highlight *= np.clip(0.6 + per_picture(painter.uniform(0, 1)) * glints, 0, 2)

    lumen = painter.uniform(0.5, 1.0) * painter.chance(0.2)
    hole = painter.outline(
        painter.uniform(-1, 1), painter.uniform(-1, 1), painter.uniform(0.2, 0.7),
        np.exp(painter.uniform(-0.3, 0.3)), painter.uniform(0, np.pi), 0.2 * warp,
    )  # fmt: skip
    lamp = 1 - per_picture(lumen) * np.exp(-(hole**3)) * (1 - mask)
    lamp *= 1 - per_picture(painter.uniform(0, 0.5)) * ((painter.x**2 + painter.y**2) / 2)
    crevice = np.clip(height - painter.blur(height, painter.uniform(3, 8) * size / 64), -0.3, 0.3)
    lamp *= np.clip(1 + per_picture(painter.uniform(0, 4)) * crevice, 0.2, 1.6) * (1 - rim)
    ambient = per_picture(painter.uniform(0.05, 0.5))
    return _Light((ambient + (1 - ambient) * shade**1.5) * lamp, highlight, gloss, lumen, lamp)


def _outside(painter: Painter, margin: np.ndarray) -> np.ndarray:
    """Where a black margin covers the picture (n, size, size): beyond a slanted edge or in a corner box."""
    angle = painter.uniform(0, 2 * np.pi)
    edge = painter.x * per_picture(np.cos(angle)) + painter.y * per_picture(np.sin(angle))
    slanted = edge > per_picture(1.1 - 0.6 * margin)
    side_x, side_y = np.where(painter.chance(0.5), 1, -1), np.where(painter.chance(0.5), 1, -1)
    box = (painter.x * per_picture(side_x) > per_picture(1 - margin * painter.uniform(0.3, 1))) & (
        painter.y * per_picture(side_y) > per_picture(1 - margin * painter.uniform(0.3, 1))
    )
    return np.where(per_picture(painter.chance(0.5)) > 0, slanted, box) & (per_picture(margin) > 0)


def _photograph(painter: Painter, image: np.ndarray, effort: np.ndarray) -> tuple[np.ndarray, dict]:
    """Exposure, tone, blur, black margin and grain; the picture and how much of each (n,)."""
    size = painter.size
    exposure = painter.uniform(0.25, 0.75)
    image *= (exposure / (image.mean((1, 2, 3)) + 1e-3))[:, None, None, None]
    image = np.clip(image, 0, 1.1) ** painter.uniform(0.7, 1.3)[:, None, None, None]
    blur = painter.uniform(0, 1.6) * effort
    image = painter.blur(image.astype("float32"), blur * size / 64)
    margin = painter.uniform(0, 1) * painter.chance(0.2)
    image *= ~_outside(painter, margin)[..., None]
    grain = painter.uniform(0, 0.05) * effort * painter.chance(0.5)
    image += grain[:, None, None, None] * painter.rng.standard_normal(image.shape, dtype="float32")
    return image, {"blur": blur, "grain": grain, "exposure": exposure, "margin": margin}


def draw_pictures(rng: np.random.Generator, count: int, size: int) -> Pictures:
    """Draw `count` pictures of `size` pixels (a multiple of MAP_SIZE) and label them."""
    painter, table = Painter(rng, count, size), _materials()
    ones = np.ones(count, "float32")
    kind = np.where(painter.chance(0.25), 0, rng.integers(1, len(OBJECTS), count))
    surface, other = rng.integers(0, MATERIALS, count), rng.integers(0, MATERIALS, count)
    other = np.where(painter.chance(0.25), surface, other)
    warp = painter.noise(4 * ones, 1.5 * ones)

    # Many easy pictures among the hard ones: on hard ones alone the network learns nothing for a long time.
    effort = painter.uniform(0, 1) ** 1.5
    undulation = painter.uniform(0, 0.12) * effort
    clutter, folds, bumps = _clutter(painter, warp, effort)
    relief, mask, rim = _object(painter, kind, warp)
    height = per_picture(undulation) * painter.noise(4 * ones, painter.uniform(1, 3)) + clutter + relief
    albedo, roughness = _texture(painter, surface, table)
    covering, covering_roughness = _texture(painter, other, table)
    albedo += mask[..., None] * (covering - albedo)
    roughness += mask * (covering_roughness - roughness)
    base = _colours(painter)
    tint = rng.normal(0, 0.12, (count, 3)).astype("float32") * (kind > 0)[:, None]
    colour = base[:, None, None] * (1 + albedo) + mask[..., None] * tint[:, None, None]

    light = _illuminate(painter, height, roughness, mask, rim, warp)
    image = np.clip(colour, 0.02, 1.5) * light.lit[..., None] + (light.highlight * light.lamp)[..., None]
    image, camera = _photograph(painter, image, effort)

    maps = [mask, (height - height.mean((1, 2), keepdims=True)) * 4, (light.lit - 0.6) * 3, light.highlight * 4 - 0.5]
    chosen = (surface, np.where(kind > 0, other, surface))
    scalars = [
        *(base.T - 0.6) * 4, *tint.T * 6, camera["blur"], camera["grain"] * 20, undulation * 8, folds, bumps,
        table["lines"][surface] * 4, light.gloss, light.lumen, camera["exposure"] * 3, camera["margin"] * 2,
        *(value for m in chosen for value in (table["slope"][m] - 2, np.log(table["scale"][m]) - 1)),
    ]  # fmt: skip
    return Pictures(
        images=(np.clip(image, 0, 1) * 255 + 0.5).astype("uint8"),
        classes=np.stack([kind, surface, np.where(kind > 0, other, MATERIALS)], 1).astype("int32"),
        maps=np.stack([_shrink(field) for field in maps], -1).astype("float16"),
        scalars=np.stack(scalars, 1).astype("float16"),
    )


def draw_chunk(seed: int, subset: str, number: int, count: int, size: int) -> Pictures:
    """Pictures of one part of a subset, whatever was drawn before. Processes that draw need not import Keras."""
    return draw_pictures(generator(seed, "pretext", subset, number), count, size)
