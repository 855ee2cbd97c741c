"""The papers' own networks through the stages, at 32 px: backbones from a weight file in the official format and from
none, a small CNN with attention.
"""

from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from tiny import DATASET, change_params, small_params, write_card, write_yaml_file
from tiny_networks import SIZE, save_official

import stages.baseline
import stages.crop
import stages.download
import stages.finetune
import stages.split
import stages.transfer
from lesionlab.files import file_digest, read_json
from lesionlab.models.backbones import find_backbone
from lesionlab.models.networks import build_network
from lesionlab.models.saved import load_classifier

SPLIT = {"crops": Path("data/crops"), "split": Path("data/split.csv"), "proof": Path("metrics/split.json")}


@pytest.fixture(scope="module")
def project(tmp_path_factory, drawn_phantom):
    """The small project after crop and split."""
    folder = tmp_path_factory.mktemp("backbones")
    changes = {"crop.negatives_per_frame": 1, "augment.copies": 0, "transfer.augment": False, "finetune.augment": False}
    write_yaml_file(folder / "params.yaml", small_params(changes))
    write_card(folder, DATASET)
    (folder / "data").mkdir()
    (folder / "data" / "raw").symlink_to(drawn_phantom)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lesionlab.tracking.log_stage", lambda stage, **given: None)
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        crops = {"crops": SPLIT["crops"]}
        sheet = Path("pictures/crops.png")
        stages.crop.main(raw=Path("data/raw"), **crops, metrics=Path("metrics/crop.json"), sheet=sheet)
        stages.split.main(**crops, split=SPLIT["split"], metrics=SPLIT["proof"])
        yield folder


def train(backbone: str, weights: str) -> dict[str, keras.Model]:
    """The networks of transfer and finetune, an epoch each."""
    change_params(Path(), {"model.backbone": backbone, "model.weights": weights})
    stages.download.main("weights", out=Path("data/weights"))
    starts = {"transfer": {"weights": Path("data/weights")}, "finetune": {"start": Path("models/transfer")}}
    trained = {}
    for name, start in starts.items():
        metrics, history = Path(f"metrics/{name}.json"), Path(f"plots/{name}.csv")
        getattr(stages, name).main(**SPLIT, **start, model=Path("models") / name, metrics=metrics, history=history)
        assert np.isfinite(pd.read_csv(history)).all(axis=None)
        assert read_json(metrics)["epochs"] == len(pd.read_csv(history)) == 1
        trained[name] = load_classifier(Path("models") / name).model
    return trained


def same(model: keras.Model, other: keras.Model, layer: str) -> bool:
    pairs = zip(model.get_layer(layer).get_weights(), other.get_layer(layer).get_weights(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "trains", "weights"),
    [
        ("vgg16", ("block5_",), "vgg16_notop.h5"),
        ("vgg16", ("block5_",), "none"),
        ("vgg19", ("block5_",), "vgg19_notop.h5"),
        ("vgg19", ("block5_",), "none"),
        ("resnet50", ("conv5_",), "resnet50_notop.h5"),
        ("resnet50", ("conv5_",), "none"),
    ],
)
def test_transfer_starts_from_the_weights_and_finetune_trains_the_last_block(project, backbone, trains, weights):
    keras.utils.set_random_seed(5)
    source = find_backbone(backbone).build(SIZE)
    if weights != "none":
        save_official(source, project / weights)
    trained = train(backbone, weights)
    recorded = read_json(Path("data/weights/weights.json"))
    digest = None if weights == "none" else file_digest(project / weights)
    assert (recorded["backbone"], recorded["weights"], recorded["sha256"]) == (backbone, weights, digest)
    weighted = [layer.name for layer in source.layers if layer.weights]
    kernels = [layer.name for layer in source.layers if isinstance(layer, keras.layers.Conv2D)]
    from_file = {name: same(source, trained["transfer"], name) for name in kernels}
    assert set(from_file.values()) == {weights != "none"}
    moved = {name for name in weighted if not same(trained["transfer"], trained["finetune"], name)}
    assert moved == {name for name in kernels if name.startswith(trains)}
    assert not same(trained["transfer"], trained["finetune"], "logits")


@pytest.mark.slow
def test_the_small_cnn_takes_attention_from_params_and_augmentation_from_the_card(project, monkeypatch):
    says = {"copies": 2, "horizontal_flip": True, "vertical_flip": False, "rotation": 0.01}
    write_card(project, DATASET, augment=says)
    change_params(project, {"baseline.attention": True} | {f"augment.{name}": "auto" for name in says})
    logged = []
    monkeypatch.setattr("lesionlab.tracking.log_stage", lambda stage, **given: logged.append(given["params"]))
    outs = {"model": "models/baseline", "metrics": "metrics/baseline.json", "history": "plots/baseline.csv"}
    stages.baseline.main(**SPLIT, **{key: Path(value) for key, value in outs.items()})
    classifier = load_classifier(Path("models/baseline"))
    assert classifier.description.architecture.attention
    assert says.items() <= logged[0]["augment"].items()
    drawn = build_network(classifier.description.architecture, 42)
    for layer in ("conv1", "attention1_gate", "attention2_gate", "logits"):
        assert not same(drawn, classifier.model, layer), layer
