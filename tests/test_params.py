"""params.yaml: what is accepted, and the line that a user reads when something is not."""

import pytest
from tiny import ROOT, change_params, read_yaml_file, small_params, write_yaml_file

from lesionlab.errors import InputError
from lesionlab.params import Params, read_params


@pytest.fixture
def project(tmp_path, monkeypatch):
    write_yaml_file(tmp_path / "params.yaml", small_params())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(project, changes: dict) -> str:
    change_params(project, changes)
    with pytest.raises(InputError) as caught:
        read_params()
    return str(caught.value)


def test_the_repositorys_own_params_are_accepted():
    params = read_params(ROOT / "params.yaml")
    assert params.dataset == "phantom"
    assert params.split.protocol == params.split.folds == params.split.validation_per_class == "auto"
    assert params.model.image_size == "auto"


def test_every_key_of_the_schema_is_in_params_yaml_and_explained_by_its_name_alone():
    written = read_yaml_file(ROOT / "params.yaml")
    assert list(written) == list(Params.model_fields)
    for name, field in Params.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            assert set(written[name]) == set(field.annotation.model_fields), name


def test_values_arrive(project):
    change_params(project, {"crop.jitter": 0.2, "seed": 7})
    params = read_params()
    assert (params.crop.jitter, params.seed) == (0.2, 7)


def test_a_number_as_dvc_writes_it_is_a_number(project):
    text = (project / "params.yaml").read_text()
    lines = ["  learning_rate: 1e-05" if "learning_rate" in line else line for line in text.splitlines()]
    (project / "params.yaml").write_text("\n".join(lines) + "\n")
    assert read_params().finetune.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop.jiter": 0.1}, "params.yaml: unknown key 'crop.jiter'; did you mean 'jitter'?"),
        ({"finetune.unfrozen_block": 1}, "params.yaml: unknown key 'finetune.unfrozen_block'; did you mean"),
        ({"agument": {}}, "params.yaml: unknown key 'agument'; did you mean 'augment'?"),
        ({"download.zzz": 1}, "params.yaml: unknown key 'download.zzz'; known here: source, mirror"),
        ({"crop.jitter": 0.7}, "params.yaml: crop.jitter: Input should be less than or equal to 0.5 (is: 0.7)"),
        ({"crop.jitter": float("nan")}, "params.yaml: crop.jitter: Input should be"),
        ({"split.protocol": "patient"}, "params.yaml: split.protocol: Input should be 'auto', 'group', 'random'"),
        ({"split.test_fold": 3}, "params.yaml: split: test_fold 3 must be below folds (3)"),
        ({"split.validation_per_class": 0}, "params.yaml: split.validation_per_class: Input should be 'auto' (is: 0)"),
        ({"dataset": "../secrets"}, "params.yaml: dataset: String should match pattern"),
        ({"detect.window_sizes": [0.5, 2]}, "params.yaml: detect.window_sizes.1: Input should be less than or equal"),
        ({"detect.max_frames": 0}, "params.yaml: detect.max_frames: Input should be greater than 0 (is: 0)"),
        ({"baseline.filters": [8] * 6}, "params.yaml: baseline.filters: List should have at most 5 items"),
        ({"crop": None}, "params.yaml: crop: Input should be a valid dictionary"),
        (
            {"model.image_size": 16},
            "params.yaml: model.image_size: Input should be 'auto' (is: 16) or Input should be ",
        ),
    ],
)
def test_one_line_names_file_key_and_remedy(project, changes, message):
    refused = refusal(project, changes)
    assert refused.startswith(message)
    assert "\n" not in refused


def test_a_missing_key_is_named(project):
    content = small_params()
    del content["crop"]["context"]
    write_yaml_file(project / "params.yaml", content)
    assert refusal(project, {}) == "params.yaml: key 'crop.context' is missing"


def test_two_faults_are_two_lines(project):
    refused = refusal(project, {"crop.jiter": 0.1, "split.folds": 2})
    assert refused.splitlines() == [
        "params.yaml: unknown key 'crop.jiter'; did you mean 'jitter'?",
        "       params.yaml: split.folds: Input should be 'auto' (is: 2) or Input should be greater than or equal to 3 "
        "(is: 2)",
    ]


def test_broken_yaml_names_file_and_line(project):
    (project / "params.yaml").write_text("seed: 42\ndataset: [phantom\n")
    refused = refusal_of_file()
    assert refused.startswith("params.yaml: not valid YAML: ")
    assert "line 3" in refused
    assert "\n" not in refused


def test_a_key_written_twice_is_an_error(project):
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text + "seed: 43\n")
    assert 'found duplicate key "seed"' in refusal_of_file()


def test_no_params_yaml_says_where_to_run(project):
    (project / "params.yaml").unlink()
    assert refusal_of_file() == f"params.yaml: not found in {project}; run stages from the repository's root"


def refusal_of_file() -> str:
    with pytest.raises(InputError) as caught:
        read_params()
    return str(caught.value)


def test_params_cannot_be_changed_by_accident(project):
    params = read_params()
    with pytest.raises(ValueError, match="frozen"):
        params.crop.jitter = 0.3
