"""Where attention should go: lesions of training crops on the cells of a network's map, moved as the crops are."""

from dataclasses import dataclass
from functools import cached_property

import keras
import numpy as np

from lesionlab.errors import InputError
from lesionlab.params import AugmentParams
from lesionlab.training.augmentation import draw_augmentation, move
from lesionlab.training.prefix import PLAIN, array_digest

LEAST = 1e-3  # of a cell, in all: less lesion than that is left at the edge of a crop by a rotation


@dataclass(frozen=True)
class Attention:
    """Attention that is taught. network: of `networks.with_attention`, sharing the layers of what trains."""

    network: keras.Model
    lesions: "Lesions"


@dataclass
class Lesions:
    """What attention is taught, in any version of any crop.

    covered: (n, side, side) uint8, the part of each cell that lesion covers, in 255ths (`files.read_lesions`). shape:
    rows and columns of the map that attention weighs; its cells are taken as equal parts of the crop, which they are
    where a crop's side is a multiple of the network's stride. augmentation, seed: those of the crops. train: rows of
    the crops that train. Raises InputError where none of them holds lesion.
    """

    covered: np.ndarray
    shape: tuple[int, int]
    augmentation: AugmentParams
    seed: int
    train: np.ndarray

    def __post_init__(self):
        self._drawn: dict[int, np.ndarray] = {}
        taught = self.covered[self.train].any(axis=(1, 2)).mean()
        if not taught:
            raise InputError(
                "data/crops/lesions.npy: no training crop holds lesion; set crop.mask_threshold in params.yaml below "
                "the masks' grey of lesion, or training.lesion_attention to 0"
            )
        self._weight = 1 / taught  # so that the mean over a batch is one over crops with lesion, however many they are

    def read(self, rows: np.ndarray, versions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each crop's share of lesion in each cell, (len(rows), cells) with sums 1; and weights (len(rows),).

        Without lesion both are 0. Over training crops the weights' mean is 1, but for what augmentation moves away.
        The share of attention that cells should have in supervised attention. Source: Liu, Mao, Sha, Yuille: Attention
        Correctness in Neural Image Captioning, AAAI 2017, https://arxiv.org/abs/1605.09553.
        """
        covered = np.asarray(self.covered[rows], dtype="float32")[..., None] / 255
        for version in np.unique(versions[versions != PLAIN]):
            chosen = versions == version
            covered[chosen] = move(covered[chosen], self._augmentation(int(version))[rows[chosen]])
        down, across = (_overlap(covered.shape[1], count) for count in self.shape)
        cells = (down @ covered[..., 0] @ across.T).reshape(len(rows), -1)
        total = cells.sum(axis=1, keepdims=True)
        there = total[:, 0] > LEAST
        shares = np.where(there[:, None], cells / np.maximum(total, LEAST), 0)
        return shares.astype("float32"), (there * self._weight).astype("float32")

    @cached_property
    def identity(self) -> dict:
        """What decides the shares, augmentation aside."""
        return {"covered": array_digest(self.covered), "shape": list(self.shape), "train": array_digest(self.train)}

    def _augmentation(self, version: int) -> np.ndarray:
        if version not in self._drawn:
            self._drawn[version] = draw_augmentation(self.augmentation, self.seed, version, len(self.covered))
        return self._drawn[version]


def _overlap(source: int, target: int) -> np.ndarray:
    """(target, source): the part of each of `source` equal cells of a line that lies in each of `target` ones."""
    first, last = np.arange(source) / source, np.arange(1, source + 1) / source
    edges = np.arange(target + 1) / target
    inside = np.minimum(last, edges[1:, None]) - np.maximum(first, edges[:-1, None])
    return np.maximum(inside, 0) * source
