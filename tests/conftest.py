import shutil
from pathlib import Path

import hypothesis
import pytest
from tiny import CARD, DATASET, LAYOUT, ROOT, small_params, write_card, write_yaml_file

from lesionlab.data.cards import Card, PhantomLayout
from lesionlab.data.phantom import draw_phantom
from lesionlab.params import Params
from lesionlab.training.backend import choose_kernels

choose_kernels()  # before a module of tests imports Keras

SHARED = ROOT.parent / "shared"

# Two busy cores: no limit on the time of one example. The same examples at every run.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, max_examples=30, database=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_processes():
    """Stages in a test's own process prepare no tracking: the next test's record would go to their database."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lesionlab.tracking.prepare", lambda: None)
        yield


@pytest.fixture(scope="session")
def drawn_phantom(tmp_path_factory) -> Path:
    """The raw folder of the small phantom: images/, masks/ and frames.csv. Read it, do not change it."""
    folder = tmp_path_factory.mktemp("phantom") / "raw"
    draw_phantom(PhantomLayout(**LAYOUT), 42, folder)
    return folder


@pytest.fixture
def tiny_params() -> Params:
    """The hyperparameters of `tiny_project`; they are frozen, so change a copy: `.crop.model_copy(update={...})`."""
    return Params.model_validate(small_params())


@pytest.fixture
def tiny_card() -> Card:
    """The card of `tiny_project`."""
    return Card.model_validate(CARD)


@pytest.fixture
def tiny_project(tmp_path, monkeypatch, drawn_phantom) -> Path:
    """A working directory with params.yaml, a card and data/raw: 12 sequences of 2 phantom frames of 96x80 pixels."""
    project = tmp_path / "project"
    project.mkdir()
    write_yaml_file(project / "params.yaml", small_params())
    write_card(project, DATASET)
    shutil.copytree(drawn_phantom, project / "data" / "raw")
    monkeypatch.chdir(project)
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    for name in ("DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    return project


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images beside the repository; tests that need them are skipped where they are absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} is absent")
    return folder
