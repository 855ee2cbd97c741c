"""Metrics by subgroup."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score
from tiny import CARD

from lesionlab.data.cards import DERIVED_COLUMNS, Card
from lesionlab.data.crops import crop_all
from lesionlab.errors import InputError
from lesionlab.evaluation.metrics import Scores, with_intervals
from lesionlab.evaluation.subgroups import LESION_SIZE, UNKNOWN, subgroup_columns, subgroup_levels, subgroup_table
from lesionlab.files import read_index

CLASSES = ["background", "polyp"]


def index(count: int = 90) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame({
        "width": rng.integers(20, 200, count), "centre": np.where(np.arange(count) < 30, "north", "south"),
        "fold": np.arange(count) % 3,
    })  # fmt: skip


def scores(count: int = 90) -> Scores:
    rng = np.random.default_rng(2)
    labels = np.arange(count) % 2
    positive = 1 / (1 + np.exp(-rng.normal((labels - 0.5) * 2)))
    return Scores(labels, np.stack([1 - positive, positive], axis=1), np.arange(count) // 3, 0.4)


def test_numbers_are_cut_in_thirds_and_names_are_not():
    table = index()
    levels = subgroup_levels(table, "lesion_size")
    assert levels.value_counts().between(28, 32).all()
    ordered = [table["width"][levels == name] for name in levels.cat.categories]
    assert ordered[0].max() <= ordered[1].min()
    assert ordered[1].max() <= ordered[2].min()
    assert levels.cat.categories[0].startswith(f"{table['width'].min()} to ")
    assert subgroup_levels(table, "centre").tolist() == table["centre"].tolist()
    assert subgroup_levels(table, "fold").tolist() == table["fold"].astype(str).tolist()


def test_one_size_is_one_subgroup():
    assert set(subgroup_levels(index().assign(width=300), "lesion_size")) == {"300"}


def test_whole_images_have_no_lesion_size(capsys):
    windows = index().assign(frame=np.arange(90) // 3)
    assert subgroup_columns(windows, ["centre", "lesion_size"]) == ["centre", "lesion_size"]
    assert capsys.readouterr().err == ""
    whole = index().assign(frame=np.arange(90))
    assert subgroup_columns(whole, ["centre", "lesion_size"]) == ["centre"]
    expected = "evaluate: no subgroups by lesion_size: every crop is a whole image, not a lesion\n"
    assert capsys.readouterr().err == expected
    assert subgroup_columns(whole, ["centre"]) == ["centre"]
    assert capsys.readouterr().err == ""


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"'scanner' is no column .*lesion_size, width, centre, fold"):
        subgroup_levels(index(), "scanner")


def test_empty_cells_are_a_subgroup_of_their_own():
    ages = pd.Series(["", *map(str, range(20, 80)), "", "41.5"], name="age")
    levels = subgroup_levels(ages.to_frame(), "age")
    assert levels.cat.categories[-1] == UNKNOWN
    assert levels.value_counts()[UNKNOWN] == 2
    assert levels.value_counts().drop(UNKNOWN).between(20, 21).all()
    assert levels.iloc[1] == levels.cat.categories[0]
    assert levels.notna().all()
    mixed = subgroup_levels(ages.replace("41.5", "old").to_frame(), "age")
    assert mixed.tolist() == [UNKNOWN, *map(str, range(20, 80)), UNKNOWN, "old"]
    groups = subgroup_levels(ages.rename("group").to_frame(), "group")  # the index's own: names, though of digits
    assert groups.tolist()[1:3] == ["20", "21"]
    codes = subgroup_levels(pd.DataFrame({"scanner": ["007", "", "7"]}), "scanner")
    assert codes.tolist() == ["007", UNKNOWN, "7"]


def test_a_column_of_a_cards_table_comes_to_the_table_of_subgroups(tmp_path, tiny_params):
    rng = np.random.default_rng(3)
    centres, rows = ["north", "south, hill", ""], []
    for number in range(24):
        Image.fromarray(rng.integers(40, 220, (40, 50, 3)).astype("uint8")).save(tmp_path / f"{number:02}.png")
        rows.append({"path": f"{number:02}.png", "class": CLASSES[number % 2], "case": number // 2})
        rows[-1] |= {"centre": centres[number % 3], "age": "" if number < 4 else 20 + number}
    pd.DataFrame(rows).to_csv(tmp_path / "frames.csv", index=False)
    layout = {"kind": "table", "file": "frames.csv", "image": "path", "label": "class", "columns": ["centre", "age"]}
    card = Card.model_validate(CARD | {"layout": layout, "groups": {"column": "case"}})
    crop_all(tmp_path, tmp_path / "crops", card, tiny_params.crop, 32, 42)
    table = read_index(tmp_path / "crops")
    assert table["centre"].tolist() == [row["centre"] for row in rows]
    labels = (table["label"] == CLASSES[1]).astype(int).to_numpy()
    whole = Scores(labels, np.eye(2)[labels], pd.factorize(table["group"])[0], 0.5)
    levels = {column: subgroup_levels(table, column) for column in ("centre", "age")}
    found = subgroup_table({"finetune": whole}, levels, CLASSES, 50, 5).query("metric == 'accuracy'")
    assert found[found["column"] == "centre"].set_index("level")["crops"].to_dict() == {
        "north": 8, "south, hill": 8, UNKNOWN: 8,
    }  # fmt: skip
    ages = found[found["column"] == "age"].set_index("level")["crops"].to_dict()
    assert ages == {"24 to 30.3333": 7, "30.3333 to 36.6667": 6, "36.6667 to 43": 7, UNKNOWN: 4}


def test_a_card_cannot_name_a_column_as_the_derived_one():
    assert LESION_SIZE in DERIVED_COLUMNS


def test_each_subgroup_has_the_figures_of_its_crops_alone():
    whole, levels = scores(), index()["centre"]
    table = subgroup_table({"finetune": whole}, {"centre": levels}, CLASSES, 200, 5)
    assert table["level"].unique().tolist() == ["north", "south"]
    for level, rows in table.groupby("level"):
        inside = (levels == level).to_numpy()
        labels, positive = whole.labels[inside], whole.probabilities[inside, 1]
        values = rows.set_index("metric")["value"]
        assert values["accuracy"] == pytest.approx(accuracy_score(labels, positive >= 0.4))
        assert values["recall"] == pytest.approx(recall_score(labels, positive >= 0.4))
        assert values["specificity"] == pytest.approx(recall_score(labels, positive >= 0.4, pos_label=0))
        assert values["roc_auc"] == pytest.approx(roc_auc_score(labels, positive))
        part = Scores(labels, whole.probabilities[inside], whole.groups[inside], 0.4)
        expected = with_intervals(part, 200, 5).set_index("metric").loc[rows["metric"]]
        assert rows["low"].tolist() == pytest.approx(expected["low"].tolist())
        assert rows["crops"].unique().tolist() == [inside.sum()]
        assert rows["groups"].unique().tolist() == [inside.sum() // 3]


def test_one_class_has_no_area_and_one_group_no_interval():
    whole = scores(12)
    levels = pd.Series(np.where(whole.labels == 1, "sick", "well"))
    table = subgroup_table({"finetune": whole}, {"ward": levels}, CLASSES, 200, 5)
    sick = table[table["level"] == "sick"].set_index("metric")
    assert sick.loc["roc_auc", ["value", "low", "high"]].isna().all()
    assert np.isnan(sick.loc["specificity", "value"])
    assert sick.loc["recall", "value"] == sick.loc["accuracy", "value"]
    assert sick.loc["roc_auc", "note"] == "no crop of class background; 4 groups: rough interval"
    single = subgroup_table({"finetune": whole}, {"group": pd.Series(whole.groups.astype(str))}, CLASSES, 200, 5)
    assert single["groups"].unique().tolist() == [1]
    assert single[["low", "high"]].isna().all(axis=None)
    assert single["note"].str.contains("one group: no interval").all()
