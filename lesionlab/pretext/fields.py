"""Random fields and outlines, the brush of the generated pictures: a batch at a time, float32."""

import numpy as np
from scipy import fft


def per_picture(values: np.ndarray) -> np.ndarray:
    """Numbers, one a picture: (n,) to (n, 1, 1) float32."""
    return np.asarray(values, dtype="float32")[:, None, None]


class Painter:
    """Fields of shape (n, size, size) float32 for one batch of pictures."""

    def __init__(self, rng: np.random.Generator, count: int, size: int):
        self.rng, self.count, self.size = rng, count, size
        axis = (np.arange(size, dtype="float32") + 0.5) / size * 2 - 1
        self.y, self.x = np.meshgrid(axis, axis, indexing="ij")
        fy, fx = np.meshgrid(np.fft.fftfreq(size) * size, np.fft.rfftfreq(size) * size, indexing="ij")
        self.fy, self.fx = fy.astype("float32"), fx.astype("float32")

    def uniform(self, low: float, high: float) -> np.ndarray:
        """A number in [low, high) a picture: (n,) float32."""
        return self.rng.uniform(low, high, self.count).astype("float32")

    def chance(self, probability: float) -> np.ndarray:
        """Whether something happens in each picture: (n,) bool."""
        return self.rng.random(self.count) < probability

    def noise(self, slope, scale, stretch=1.0, angle=0.0) -> np.ndarray:
        """Random fields, mean 0 and deviation 1: flat spectrum up to frequency `scale`, then falling by `slope`.

        scale: cycles a picture. stretch > 1 draws streaks across `angle` (radians).
        """
        white = self.rng.standard_normal((self.count, self.size, self.size // 2 + 1, 2), dtype="float32")
        cos, sin = per_picture(np.cos(angle) + 0 * slope), per_picture(np.sin(angle) + 0 * slope)
        across, along = self.fx * cos + self.fy * sin, self.fy * cos - self.fx * sin
        power = across**2 + (per_picture(stretch + 0 * slope) * along) ** 2
        amplitude = (1 + power / per_picture(scale) ** 2) ** per_picture(-slope / 2)
        amplitude[:, 0, 0] = 0
        field = fft.irfft2(white.view("complex64")[..., 0] * amplitude, s=(self.size, self.size), overwrite_x=True)
        return field / (field.std((1, 2), keepdims=True) + 1e-6)

    def blur(self, field: np.ndarray, sigma) -> np.ndarray:
        """Gaussian blur with a deviation of `sigma` pixels; edges wrap. Channels may follow the two axes."""
        gain = np.exp(-2 * (np.pi * per_picture(sigma) / self.size) ** 2 * (self.fx**2 + self.fy**2))
        if field.ndim == 4:
            gain = gain[..., None]
        return fft.irfft2(fft.rfft2(field, axes=(1, 2)) * gain, s=(self.size, self.size), axes=(1, 2))

    def outline(self, centre_x, centre_y, radius, elongation, angle, wobble) -> np.ndarray:
        """Distance from the centre in parts of the radius, of a wobbly ellipse: 1 on its edge."""
        dx, dy = self.x - per_picture(centre_x), self.y - per_picture(centre_y)
        cos, sin = per_picture(np.cos(angle)), per_picture(np.sin(angle))
        along, across = dx * cos + dy * sin, dy * cos - dx * sin
        distance = np.hypot(along / per_picture(elongation), across * per_picture(elongation)) / per_picture(radius)
        return distance * (1 + wobble)
