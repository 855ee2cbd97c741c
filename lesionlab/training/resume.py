"""Where a training run stands, kept outside the outs while it runs, so that an interrupted one goes on exactly."""

import contextlib
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from lesionlab.files import repository_root, whole_file
from lesionlab.training.prefix import digest_of

SECONDS_BETWEEN_STATES = 20.0  # shorter epochs are sooner trained again than written; a state is 4 times the weights
KEPT_STATES = 8  # of interrupted runs that nobody took up again


@dataclass
class Standing:
    """Where training stands after `len(history)` epochs (a row each), beside the weights and the optimizer."""

    history: list[dict[str, float]]
    kept_epoch: int
    kept_weights: list[np.ndarray]
    kept_probabilities: np.ndarray


class State:
    """One run's state: a file named after all that decides the run's result, so that no other run can take it up."""

    def __init__(self, folder: Path, identity: dict):
        self._path = folder / f"{digest_of(identity)}.npz"
        self._written = time.monotonic()

    def load(self, model: keras.Model) -> Standing | None:
        """Give a compiled `model` the weights and the optimizer that were kept; None when there is nothing to go on."""
        try:
            with np.load(self._path, allow_pickle=False) as file:
                kept = dict(file)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # not there, or cut off when the machine went down
            return None
        for variable, value in zip(_variables(model), _listed(kept, "variable"), strict=True):
            variable.assign(value)
        history = pd.DataFrame(kept["history"]).to_dict("records")
        return Standing(history, int(kept["kept_epoch"]), _listed(kept, "weights"), kept["kept_probabilities"])

    def save(self, model: keras.Model, standing: Standing) -> None:
        """Write it whole or not at all, if the last time was long enough ago."""
        if time.monotonic() - self._written < SECONDS_BETWEEN_STATES:
            return
        content = {f"variable{i}": keras.ops.convert_to_numpy(value) for i, value in enumerate(_variables(model))}
        content |= {f"weights{i}": value for i, value in enumerate(standing.kept_weights)}
        content["history"] = pd.DataFrame(standing.history).to_records(index=False)
        content["kept_epoch"] = np.array(standing.kept_epoch)
        content["kept_probabilities"] = standing.kept_probabilities
        with whole_file(self._path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **content)
        with contextlib.suppress(FileNotFoundError):  # another run has just ended and deleted its own
            oldest_first = sorted(self._path.parent.glob("*.npz"), key=lambda path: path.stat().st_mtime)
            for path in oldest_first[:-KEPT_STATES]:
                path.unlink()
        self._written = time.monotonic()

    def remove(self) -> None:
        """Forget the run: it has ended."""
        self._path.unlink(missing_ok=True)


def states_folder() -> Path:
    """Outside the outs, which DVC deletes before a stage runs, and shared by runs in temporary copies."""
    return repository_root() / ".lesionlab" / "runs"


def _variables(model: keras.Model) -> list:
    return [*model.weights, *model.optimizer.variables]


def _listed(kept: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
    count = sum(key.removeprefix(name).isdecimal() for key in kept if key.startswith(name))
    return [kept[f"{name}{i}"] for i in range(count)]
