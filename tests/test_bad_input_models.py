"""What a user can get wrong about models: one error line, exit status 1, nothing half-written."""

import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import change_params, crop_stage, run_stage, split_stage
from tiny_networks import tiny_architecture

from lesionlab.files import file_digest, write_json
from lesionlab.models.backbones import find_backbone
from lesionlab.models.networks import build_network
from lesionlab.models.saved import Classifier, Description, save_classifier
from lesionlab.stage import run
from lesionlab.training.backend import environment

pytestmark = pytest.mark.slow

SHARED = ("--crops", "data/crops", "--split", "data/split.csv", "--proof", "metrics/split.json")


def arguments_of(name: str, *more: str) -> list[str]:
    outs = ("--model", f"models/{name}", "--metrics", f"metrics/{name}.json", "--history", f"plots/{name}.csv")
    return [*SHARED, *more, *outs]


def message_of(name: str, *more: str) -> str:
    """What a stage exits with, run as its command is but in this process; Python prints a text and exits with 1."""
    module = importlib.import_module(f"stages.{name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"stages.{name}", *arguments_of(name, *more)])
        with pytest.raises(SystemExit) as ended:
            run(module.main, module.__doc__)
    assert isinstance(ended.value.code, str)
    return ended.value.code


def write_weights(folder: Path, backbone: str, of: str | None = None) -> None:
    """data/weights as the weights stage writes it; of: the network whose weights the file really holds."""
    folder.mkdir(parents=True, exist_ok=True)
    if of is not None:
        find_backbone(of).build(32).save_weights(folder / "some.weights.h5")
    write_json(folder / "weights.json", {"backbone": backbone, "file": of and "some.weights.h5"})


def write_transfer(folder: Path) -> None:
    architecture = tiny_architecture("mobilenet_0.25")
    description = Description(
        architecture=architecture, stage="transfer", dataset="tiny-phantom", protocol="group", seed=42,
        unfrozen_blocks=0, blocks=[], threshold=0.5, environment=environment(2),
    )  # fmt: skip
    save_classifier(folder, Classifier(description, build_network(architecture, 42)))


@pytest.fixture(scope="module")
def cropped(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cropped")


@pytest.fixture
def project(tiny_project, cropped) -> Path:
    """The tiny project with crops and split, made once."""
    made = ("data/crops", "data/split.csv", "metrics")
    if not (cropped / "metrics").exists():
        for stage in (crop_stage(), split_stage()):
            assert stage.returncode == 0, stage.stderr
        (cropped / "data").mkdir()
        for name in made:
            copy = shutil.copytree if (tiny_project / name).is_dir() else shutil.copy
            copy(tiny_project / name, cropped / name)
    for name in made:
        if not (tiny_project / name).exists():
            copy = shutil.copytree if (cropped / name).is_dir() else shutil.copy
            copy(cropped / name, tiny_project / name)
    return tiny_project


def files_in(project: Path) -> dict[str, str]:
    """Every file with its checksum; the caches below .lesionlab are no outputs."""
    return {
        path.relative_to(project).as_posix(): file_digest(path)
        for path in project.rglob("*")
        if path.is_file() and ".lesionlab" not in path.parts
    }


def refusal(project: Path, stage: str, *arguments: str) -> str:
    """The one line that a stage ends with; it must have written nothing."""
    before = files_in(project)
    line = message_of(stage, *arguments)
    assert line.startswith("error: ")
    assert "\n" not in line
    assert files_in(project) == before
    return line


def test_an_unknown_backbone(project):
    change_params(project, {"model.backbone": "vgg17"})
    write_weights(project / "data" / "weights", "mobilenet_0.25")
    line = refusal(project, "transfer", "--weights", "data/weights")
    assert line.startswith("error: model.backbone 'vgg17' is unknown; known: auto, vgg16, vgg19, resnet50, mobilenet,")


def test_more_unfrozen_blocks_than_the_backbone_has(project):
    change_params(project, {"finetune.unfrozen_blocks": 6})
    write_transfer(project / "models" / "transfer")
    line = refusal(project, "finetune", "--start", "models/transfer")
    assert line == "error: params.yaml: finetune.unfrozen_blocks: Input should be less than or equal to 5 (is: 6)"


def test_weights_of_another_network(project):
    write_weights(project / "data" / "weights", "mobilenet_0.25", of="mobilenet_0.5")
    line = refusal(project, "transfer", "--weights", "data/weights")
    assert line.startswith("error: data/weights/some.weights.h5: these are not weights of mobilenet_0.25 without its ")
    assert line.endswith("set model.weights or model.backbone so that they belong together")


def test_weights_for_another_backbone(project):
    write_weights(project / "data" / "weights", "vgg16")
    line = refusal(project, "transfer", "--weights", "data/weights")
    assert line == "error: data/weights: holds weights of vgg16, not mobilenet_0.25; run dvc repro"


def test_a_missing_weight_file(project):
    change_params(project, {"model.weights": "somewhere/mine.weights.h5"})
    ended = run_stage("download", "weights", "--out", "data/weights")
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line == (
        "error: params.yaml: model.weights 'somewhere/mine.weights.h5' is neither auto, imagenet, bundled, none nor a "
        f"file (looked for {project}/somewhere/mine.weights.h5)"
    )
    assert not (project / "data" / "weights").exists()


def test_a_weights_folder_without_its_file(project):
    write_weights(project / "data" / "weights", "mobilenet_0.25", of="mobilenet_0.25")
    (project / "data" / "weights" / "some.weights.h5").unlink()
    line = refusal(project, "transfer", "--weights", "data/weights")
    assert line.startswith("error: data/weights/some.weights.h5: ")


@pytest.mark.parametrize(("stage", "arguments"), [("baseline", ()), ("finetune", ("--start", "models/transfer"))])
def test_a_loss_that_is_no_number(project, stage, arguments):
    """1e30 may only give a useless network; 1e39 is infinite in float32."""
    change_params(project, {f"{stage}.learning_rate": 1e39, f"{stage}.epochs": 3})
    write_transfer(project / "models" / "transfer")
    line = refusal(project, stage, *arguments)
    assert line.startswith(f"error: {stage}: ")
    assert line.endswith(f"lower {stage}.learning_rate in params.yaml (is 1e+39)")


def test_crops_of_another_size_than_the_model(project):
    write_transfer(project / "models" / "transfer")
    crops = np.load(project / "data" / "crops" / "images.npy")
    np.save(project / "data" / "crops" / "images.npy", np.repeat(np.repeat(crops, 2, axis=1), 2, axis=2))
    line = refusal(project, "finetune", "--start", "models/transfer")
    assert line == (
        "error: data/crops: crops are 64 px, the network takes 32; run dvc repro (cells of a study share its crops, so "
        "there set.model.image_size alone counts)"
    )


def test_a_changed_transfer_model(project):
    write_transfer(project / "models" / "transfer")
    path = project / "models" / "transfer" / "model.weights.h5"
    path.write_bytes(path.read_bytes() + b"\0")
    line = refusal(project, "finetune", "--start", "models/transfer")
    assert line.startswith("error: models/transfer/model.weights.h5: checksum differs from models/transfer/model.json")


def test_a_missing_transfer_model(project):
    line = refusal(project, "finetune", "--start", "models/transfer")
    assert line.startswith("error: models/transfer/model.json: not found; run")


def test_crops_of_another_data_set(project):
    write_transfer(project / "models" / "transfer")
    table = project / "data" / "crops" / "index.csv"
    table.write_text(table.read_text().replace(",polyp,", ",mole,"))
    line = refusal(project, "finetune", "--start", "models/transfer")
    assert line == "error: data/crops/index.csv: label 'mole' is not one of background, polyp"


def test_the_command_prints_the_line_and_exits_with_1(project):
    change_params(project, {"finetune.learning_rate": 1e39, "finetune.epochs": 3})
    write_transfer(project / "models" / "transfer")
    before = files_in(project)
    ended = run_stage("finetune", *arguments_of("finetune", "--start", "models/transfer"))
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    line = ended.stderr.splitlines()[-1]
    assert line.startswith("error: finetune: ")
    assert line.endswith("lower finetune.learning_rate in params.yaml (is 1e+39)")
    assert ended.stderr.count("error: ") == 1
    assert files_in(project) == before
