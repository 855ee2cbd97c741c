"""The figshare release of the brain tumours in miniature."""

from pathlib import Path

import h5py
import numpy as np

SLICES = {  # number: class, patient, side, fold
    1: (1, "100360", 512, 3),
    2: (1, "100360", 512, 3),
    3: (2, "MR017260B", 512, 1),
    4: (3, "108931", 256, 5),
    5: (3, "98425", 512, 2),
}


def tumour(number: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A slice whose rows and columns differ, and a tumour that is wider than high: int16 and bool (row, column)."""
    row, column = np.mgrid[:side, :side]
    image = (3 * row + 10 * column + 100 * number).astype("int16")
    mask = (abs(row - side // 4) < side // 16) & (abs(column - side // 2) < side // 5)
    return image, mask


def write_mat(path: Path, number: int, slices: dict[int, tuple] = SLICES, **changes: object) -> None:
    """A slice as MATLAB 7.3 writes it: HDF5 behind 512 bytes of MATLAB's own, arrays transposed, text as code units."""
    label, patient, side, _ = slices[number]
    image, mask = tumour(number, side)
    content = {
        "PID": np.array([[ord(letter)] for letter in patient], "uint16"),
        "image": image.T,
        "label": np.array([[float(label)]]),
        "tumorBorder": np.array([[1.0, 2.0, 3.0, 4.0]]).T,
        "tumorMask": mask.T.astype("uint8"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in (content | changes).items():
            if value is not None:
                file.create_dataset(f"cjdata/{name}", data=value)
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))


def write_cvind(path: Path, folds: list[int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    folds = [fold for *_, fold in SLICES.values()] if folds is None else folds
    with h5py.File(path, "w", userblock_size=512) as file:
        file["cvind"] = np.array(folds, float)[:, None]
