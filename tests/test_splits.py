"""Splits: near-duplicates found and joined, nothing shared between subsets, and the proof of it."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import ROOT, small_params

from lesionlab.data.cards import read_card, resolve_split
from lesionlab.data.crops import crop_frames
from lesionlab.data.readers import read_frames
from lesionlab.data.splits import (
    assign_folds,
    crop_digests,
    describe_split,
    join_near_duplicates,
    near_duplicates,
    shuffle_labels,
)
from lesionlab.errors import InputError
from lesionlab.params import Params, SplitParams, read_params

RESOLVED = {
    "split.protocol": "group", "split.near_duplicate_bits": 6, "split.validation_per_class": None,
    "split.drop_duplicates": False,
}  # fmt: skip
PARAMS = Params.model_validate(small_params(RESOLVED)).split


def protocol(name: str, **changes: object) -> SplitParams:
    return SplitParams.model_validate(PARAMS.model_dump() | {"protocol": name} | changes)


# Near-duplicates


def brute_force(hashes: np.ndarray, bits: int) -> list[list[int]]:
    pairs = itertools.combinations(range(len(hashes)), 2)
    return [[a, b] for a, b in pairs if (int(hashes[a]) ^ int(hashes[b])).bit_count() <= bits]


@st.composite
def planted_hashes(draw):
    """Random hashes, some of them copies of others with a few bits turned; all distinct."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    hashes = rng.integers(0, 2**64, draw(st.integers(1, 30)), dtype="uint64").tolist()
    for _ in range(draw(st.integers(0, 20))):
        turned = hashes[rng.integers(len(hashes))]
        for bit in rng.choice(64, rng.integers(1, 20), replace=False):
            turned ^= 1 << int(bit)
        hashes.append(turned)
    return np.array(list(dict.fromkeys(hashes)), dtype="uint64")


@settings(max_examples=100)
@given(planted_hashes(), st.integers(0, 16))
def test_near_duplicates_are_those_of_a_comparison_of_all(hashes, bits):
    assert near_duplicates(hashes, bits).tolist() == brute_force(hashes, bits)


def test_near_duplicates_in_more_rows_than_a_block_holds():
    """All in one bucket of every band but the first, where they count up to 699."""
    hashes = np.random.default_rng(1).permutation(700).astype("uint64")
    assert near_duplicates(hashes, 1).tolist() == brute_force(hashes, 1)


@given(st.integers(1, 12))
def test_hashes_that_crowd_in_one_band_are_compared_too(bits):
    hashes = np.arange(64, dtype="uint64")  # alike in all but the lowest six bits
    assert near_duplicates(hashes, bits).tolist() == brute_force(hashes, bits)


def test_exactly_the_given_number_of_bits_is_near():
    hashes = np.array([0, 0b111111, 0b1111111 << 20], dtype="uint64")
    assert near_duplicates(hashes, 6).tolist() == [[0, 1]]
    assert near_duplicates(hashes, 5).tolist() == []
    assert near_duplicates(hashes, 7).tolist() == [[0, 1], [0, 2]]


@st.composite
def indexes(draw, fewest: int = 1, most: int = 25):
    """An index of frames with groups and hashes of which some are near others."""
    hashes = draw(planted_hashes())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(fewest, most))
    groups = rng.integers(0, max(1, count // 2), count)
    rows = []
    for number in range(count):
        hashed = f"{int(rng.choice(hashes)):016x}"
        for _ in range(rng.integers(1, 4)):
            label = "polyp" if rng.random() < 0.5 else "background"
            rows.append(
                {"label": label, "group": f"g{groups[number]}", "frame": f"f{number}", "official": "", "hash": hashed}
            )
    table = pd.DataFrame(rows)
    table.insert(0, "id", range(len(table)))
    return with_digests(table)


def with_digests(index: pd.DataFrame) -> pd.DataFrame:
    """Every crop and every frame unlike any other."""
    frame, _ = pd.factorize(index["frame"])
    return index.assign(
        digest=index["id"].map("{:016x}".format), frame_digest=pd.Series(frame, index.index).map("{:016x}".format)
    )


def together(index: pd.DataFrame, bits: int) -> set[frozenset[int]]:
    """Crops that must stay together, by joining pair after pair until nothing changes."""
    parent = list(range(len(index)))

    def root(row: int) -> int:
        while parent[row] != row:
            row = parent[row]
        return row

    rows = list(index.itertuples())
    for a, b in itertools.combinations(range(len(rows)), 2):
        near = (int(rows[a].hash, 16) ^ int(rows[b].hash, 16)).bit_count() <= bits
        if near or rows[a].group == rows[b].group:
            parent[root(a)] = root(b)
    classes: dict[int, set[int]] = {}
    for row in range(len(rows)):
        classes.setdefault(root(row), set()).add(row)
    return {frozenset(members) for members in classes.values()}


@given(indexes(), st.integers(0, 10))
def test_joined_groups_are_the_equivalence_closure(index, bits):
    joined = join_near_duplicates(index, bits)
    found = {frozenset(np.flatnonzero(joined == number).tolist()) for number in np.unique(joined)}
    assert found == together(index, bits)


def make_index(groups: int, frames: int = 2, seed: int = 0, **columns: object) -> pd.DataFrame:
    """Groups of frames of three crops each: two of background, one polyp; hashes far from each other."""
    rng = np.random.default_rng(seed)
    rows = []
    for group, frame in itertools.product(range(groups), range(frames)):
        hashed = f"{int(rng.integers(0, 2**63)):016x}"
        for label in ("polyp", "background", "background"):
            rows.append({"label": label, "group": f"g{group}", "frame": f"g{group}f{frame}", "hash": hashed})
    table = pd.DataFrame(rows).assign(official="", x=0, y=0, width=9, height=9, **columns)
    table.insert(0, "id", range(len(table)))
    return with_digests(table)


# Folds


@settings(max_examples=60)
@given(
    indexes(12, 40),
    st.sampled_from(["group", "random"]),
    st.integers(3, 5),
    st.integers(0, 2),
    st.integers(0, 5),
)
def test_what_must_stay_together_does(index, name, folds, test_fold, seed):
    params = protocol(name, folds=folds, test_fold=test_fold)
    try:
        table = assign_folds(index, params, seed)
    except InputError:
        assume(False)  # too few groups of a class; tested below
    assert table["id"].tolist() == index["id"].tolist()
    assert set(table["subset"]) == {"train", "val", "test"}
    assert table["fold"].between(0, folds - 1).all()
    expected = {test_fold: "test", (test_fold + 1) % folds: "val"}
    assert [expected.get(fold, "train") for fold in table["fold"]] == table["subset"].tolist()
    assert (table["fold"].groupby(index["frame"]).nunique() == 1).all()
    if name == "group":
        for members in together(index, params.near_duplicate_bits):
            assert table["fold"].iloc[list(members)].nunique() == 1
    pd.testing.assert_frame_equal(table, assign_folds(index, params, seed))


def test_the_seed_changes_the_table():
    tables = [assign_folds(make_index(20), protocol("group"), seed)["fold"].tolist() for seed in range(4)]
    assert len({tuple(folds) for folds in tables}) == 4


def test_folds_are_of_like_size_and_balance():
    index = make_index(30)
    table = assign_folds(index, protocol("group", folds=5), 42)
    assert table["fold"].value_counts().tolist() == [36] * 5
    assert index["label"].groupby(table["fold"]).value_counts().xs("polyp", level=1).tolist() == [12] * 5


def test_every_fold_can_be_the_test_fold():
    index = make_index(9)
    tested = [assign_folds(index, protocol("group", test_fold=fold), 42) for fold in range(3)]
    members = [set(table["id"][table["subset"] == "test"]) for table in tested]
    assert set.union(*members) == set(index["id"])
    assert sum(map(len, members)) == len(index)


def test_random_frames_ignore_groups_and_are_marked():
    index = make_index(12, frames=6)
    table = assign_folds(index, protocol("random"), 42)
    description = describe_split(index, table, protocol("random"), grouped=True, seed=42)
    assert description["protocol"] == "random"
    assert description["group_disjoint"] is False
    assert description["proof"]["groups_in_two_subsets"] >= 10
    assert description["proof"]["frames_in_two_subsets"] == 0


def test_a_random_split_is_not_group_disjoint_even_where_chance_shares_nothing():
    index = make_index(12, frames=1)
    table = assign_folds(index, protocol("random"), 42)
    description = describe_split(index, table, protocol("random"), grouped=True, seed=42)
    assert not any(description["proof"].values())
    assert description["group_disjoint"] is False


def test_near_duplicates_join_their_groups_and_the_proof_counts_them():
    index = make_index(12, frames=1)
    hashes = index["hash"].to_numpy(copy=True)
    near = f"{int(hashes[0], 16) ^ 0b101:016x}"
    index["hash"] = np.where(index["group"] == "g7", near, hashes)
    table = assign_folds(index, protocol("group"), 42)
    subset = table.set_index(index["group"])["subset"]
    assert set(subset["g0"]) == set(subset["g7"])
    assert table["group"].equals(index["group"].replace("g7", "g0"))
    assert "group" not in assign_folds(make_index(12), protocol("group"), 42)
    description = describe_split(index, table, protocol("group"), grouped=True, seed=42)
    assert description["groups"] == 12
    assert description["groups_after_joining_near_duplicates"] == 11
    assert description["group_disjoint"] is True
    assert set(description["proof"].values()) == {0}
    assert sum(part["groups"] for part in description["subsets"].values()) == 11
    assert sum(part["crops"] for part in description["subsets"].values()) == 36
    apart = table.assign(subset=np.where(index["group"] == "g7", "val", "test"))
    proof = describe_split(index, apart, protocol("random"), grouped=True, seed=42)["proof"]
    assert proof == {
        "groups_in_two_subsets": 0,
        "frames_in_two_subsets": 0,
        "identical_frames_across_subsets": 0,
        "equal_hashes_across_subsets": 0,
        "near_duplicates_across_subsets": 1,
    }


def test_the_proof_finds_what_is_shared():
    index = make_index(6)
    table = assign_folds(index, protocol("group"), 42)
    same = ["hash", "frame_digest"]
    index.loc[index["frame"] == "g1f1", same] = index.loc[0, same].to_numpy()  # the same picture in g0 and g1
    shared = table.assign(subset=np.where(index["group"] == "g1", "test", "train"))
    shared.loc[1, "subset"] = "val"  # one crop of g0f0
    with pytest.raises(InputError, match="groups are shared between subsets"):
        describe_split(index, shared, protocol("group"), grouped=True, seed=42)
    description = describe_split(index, shared, protocol("official"), grouped=True, seed=42)
    assert description["group_disjoint"] is False
    assert description["proof"]["groups_in_two_subsets"] == 1
    assert description["proof"]["frames_in_two_subsets"] == 1
    assert description["proof"]["identical_frames_across_subsets"] == 1
    assert description["proof"]["equal_hashes_across_subsets"] == 1


def test_other_pixels_of_one_hash_are_shared_but_not_identical():
    index = make_index(6)
    table = assign_folds(index, protocol("group"), 42)
    apart = table.assign(subset=np.where(index["group"] == "g1", "test", "train"))
    index.loc[index["frame"] == "g1f1", "hash"] = index["hash"][0]
    with pytest.raises(InputError, match=r"groups are shared between subsets: .*'equal_hashes_across_subsets': 1"):
        describe_split(index, apart, protocol("group"), grouped=True, seed=42)
    description = describe_split(index, apart, protocol("official"), grouped=True, seed=42)
    assert description["group_disjoint"] is False
    assert {name: count for name, count in description["proof"].items() if count} == {"equal_hashes_across_subsets": 1}


def test_a_card_without_groups_is_never_group_disjoint():
    index = make_index(6)
    table = assign_folds(index, protocol("group"), 42)
    assert describe_split(index, table, protocol("group"), grouped=True, seed=42)["group_disjoint"] is True
    assert describe_split(index, table, protocol("group"), grouped=False, seed=42)["group_disjoint"] is False


# Published splits


def test_official_keeps_the_published_test_subset_and_draws_validation_by_groups():
    index = make_index(12)
    index["official"] = np.where(index["group"].isin(["g2", "g5", "g9"]), "test", "train")
    table = assign_folds(index, protocol("official"), 42)
    assert (table["subset"] == "test").tolist() == (index["official"] == "test").tolist()
    assert (table["fold"] == -1).tolist() == (index["official"] == "test").tolist()
    assert (table["subset"].groupby(index["group"]).nunique() == 1).all()
    assert (table["subset"] == "val").sum() == 18
    description = describe_split(index, table, protocol("official"), grouped=True, seed=42)
    assert description["protocol"] == "official"
    assert description["group_disjoint"] is True


def test_official_keeps_a_published_validation_subset_and_shows_what_it_shares():
    index = make_index(12)
    index["official"] = np.select(
        [index["frame"].isin(["g2f0", "g5f1"]), index["frame"].isin(["g2f1", "g8f0"])], ["test", "val"], "train"
    )
    table = assign_folds(index, protocol("official"), 42)
    assert table["subset"].tolist() == index["official"].tolist()
    description = describe_split(index, table, protocol("official"), grouped=True, seed=42)
    assert description["group_disjoint"] is False
    assert description["proof"]["groups_in_two_subsets"] == 3


def test_other_protocols_ignore_the_published_split():
    index = make_index(12)
    published = index.assign(official=np.where(index["group"] == "g0", "test", "train"))
    pd.testing.assert_frame_equal(
        assign_folds(index, protocol("group"), 42), assign_folds(published, protocol("group"), 42)
    )


def test_published_numbered_folds_are_taken_as_they_are():
    index = make_index(12)
    index["official"] = (index["group"].str[1:].astype(int) % 3 + 1).astype(str)
    for test_fold in range(3):
        table = assign_folds(index, protocol("official", test_fold=test_fold), 42)
        assert (table["fold"] + 1).astype(str).tolist() == index["official"].tolist()
        assert set(index["official"][table["subset"] == "test"]) == {str(test_fold + 1)}
        assert set(index["official"][table["subset"] == "val"]) == {str((test_fold + 1) % 3 + 1)}
    description = describe_split(index, table, protocol("official"), grouped=True, seed=42)
    assert description["group_disjoint"] is True
    with pytest.raises(InputError, match=r"split\.folds is 5, but the data set publishes 3 folds"):
        assign_folds(index, protocol("official", folds=5), 42)
    index.loc[4, "official"] = ""
    with pytest.raises(InputError, match=rf"{index['frame'][4]} has no published fold, but others have"):
        assign_folds(index, protocol("official"), 42)


def test_where_no_fold_validates_none_is_drawn():
    """So that a class may have fewer groups outside of the test subset than there would be folds."""
    index = official_index()
    for changes in ({}, {"official_validation": False, "validation_per_class": 8}):
        table = assign_folds(index, protocol("official", folds=40, **changes), 42)
        assert (table["fold"] == -1).all()
        assert set(table["subset"]) == {"train", "val", "test"}
    with pytest.raises(InputError, match=r"fewer than split\.folds \(40\)"):
        assign_folds(index, protocol("official", folds=40, official_validation=False), 42)


def official_index() -> pd.DataFrame:
    """Whole images of 40 groups of one to four: the first ten test, one group validates as published."""
    rng = np.random.default_rng(1)
    rows = [
        {
            "label": "ab"[group % 2],
            "group": f"g{group}",
            "frame": f"g{group}f{frame}",
            "hash": f"{rng.integers(2**62):016x}",
        }
        for group in range(40)
        for frame in range(1 + group % 4)
    ]
    index = pd.DataFrame(rows)
    number = index["group"].str[1:].astype(int)
    index["official"] = np.select([number < 10, number >= 38], ["test", "val"], "train")
    index.insert(0, "id", range(len(index)))
    return with_digests(index)


def test_images_a_class_move_to_validation_in_whole_groups():
    index = official_index()
    published = (index["official"] == "val").to_numpy()
    for seed in range(5):
        table = assign_folds(index, protocol("official", validation_per_class=8), seed)
        drawn = ((table["subset"] == "val") & ~published).to_numpy()
        assert index["label"][drawn].value_counts().to_dict() == {"a": 8, "b": 8}
        assert (table["subset"][published] == "val").all()
        assert (table["subset"].groupby(index["group"]).nunique() == 1).all()
        assert (table["subset"] == "test").tolist() == (index["official"] == "test").tolist()
    assert assign_folds(index, protocol("official", validation_per_class=8), 0)["subset"].ne(table["subset"]).any()


def test_a_published_validation_subset_can_be_ignored():
    index = official_index()
    only_drawn = protocol("official", official_validation=False, validation_per_class=8)
    table = assign_folds(index, only_drawn, 42)
    assert index["label"][table["subset"] == "val"].value_counts().to_dict() == {"a": 8, "b": 8}
    by_fold = assign_folds(index, protocol("official", official_validation=False), 42)
    assert (by_fold["subset"] == "val").tolist() == (by_fold["fold"] == 0).tolist()


@pytest.mark.parametrize("changes", [{}, {"official_validation": False, "validation_per_class": 8}])
def test_folds_that_would_all_be_the_same_published_subsets_are_refused(changes):
    assign_folds(official_index(), protocol("official", **changes), 42)
    with pytest.raises(InputError, match=r"test_fold is 1, but .* one test and one validation subset,"):
        assign_folds(official_index(), protocol("official", test_fold=1, **changes), 42)
    drawn = [
        assign_folds(official_index(), protocol("official", official_validation=False, test_fold=fold), 42)
        for fold in (0, 1)
    ]
    assert drawn[0]["subset"].ne(drawn[1]["subset"]).any()


def test_more_validation_than_there_is_leaves_no_training_and_is_named():
    with pytest.raises(InputError, match=r"subset train holds no crop of class '[ab]'; lower .*validation_per_class"):
        assign_folds(official_index(), protocol("official", validation_per_class=1000), 42)


def test_duplicates_of_test_images_are_left_out_and_repeats_in_test_count_once():
    index = official_index()
    subset = index["official"].to_numpy()
    test, val, train = (np.flatnonzero(subset == name) for name in ("test", "val", "train"))
    near = f"{int(index['hash'][test[0]], 16) ^ 0b11:016x}"
    index.loc[train[3], "hash"] = near  # near a test image
    index.loc[val[1], "hash"] = index["hash"][test[4]]
    index.loc[train[5], "hash"] = index["hash"][val[0]]
    index.loc[test[7], ["hash", "digest"]] = index.loc[test[6], ["hash", "digest"]].to_numpy()
    index.loc[train[8], ["hash", "digest"]] = index.loc[train[9], ["hash", "digest"]].to_numpy()  # harmless
    kept = assign_folds(index, protocol("official"), 42)
    before = describe_split(index, kept, protocol("official"), grouped=True, seed=42)
    assert before["proof"]["near_duplicates_across_subsets"] + before["proof"]["equal_hashes_across_subsets"] >= 3
    assert before["duplicates"]["repeated_crops_in_test"] == 1
    assert before["duplicates"]["crops_in_no_subset"] == 0
    params = protocol("official", drop_duplicates=True)
    table = assign_folds(index, params, 42)
    assert np.flatnonzero(table["subset"] == "none").tolist() == sorted([train[3], val[1], train[5], test[7]])
    after = describe_split(index, table, params, grouped=True, seed=42)
    assert after["proof"] == dict.fromkeys(after["proof"], 0)
    assert after["group_disjoint"] is True
    assert (after["duplicates"]["repeated_crops_in_test"], after["duplicates"]["crops_in_no_subset"]) == (0, 4)


def test_duplicates_are_reported():
    index = official_index()
    table = assign_folds(index, protocol("official"), 42)
    test, train = (int(np.flatnonzero(table["subset"] == name)[0]) for name in ("test", "train"))
    index.loc[train, "digest"] = index["digest"][test]
    group = index["group"].value_counts().index[0]
    index.loc[index.index[index["group"] == group][0], "label"] = "ab"[
        index["label"][index["group"] == group].iloc[0] == "a"
    ]
    report = describe_split(index, table, protocol("official"), grouped=True, seed=42)["duplicates"]
    assert report["identical_crops_across_subsets"] == 1
    assert report["groups_with_two_labels"] == 1
    other = index.index[(index["label"] != index["label"][0]) & (index["group"] != group)][0]
    index.loc[other, "hash"] = index["hash"][0]  # one picture in two groups, under two labels
    report = describe_split(index, table, protocol("official"), grouped=True, seed=42)["duplicates"]
    assert report["groups_with_two_labels"] == 2
    windows = describe_split(make_index(12), assign_folds(make_index(12), protocol("group"), 42), protocol("group"),
                             grouped=True, seed=42)  # fmt: skip
    assert windows["duplicates"]["groups_with_two_labels"] is None  # lesion and background of one frame


def test_digests_tell_identical_crops():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype="uint8")
    images[3] = images[1]
    first, second, third, fourth = crop_digests(images)
    assert second == fourth
    assert len({first, second, third}) == 3


# Shuffled labels


@given(indexes(3, 40), st.integers(0, 5))
def test_shuffled_labels_are_one_a_group_and_keep_the_shares(index, seed):
    groups = join_near_duplicates(index, 6)
    labels = shuffle_labels(index["label"].to_numpy(), groups, seed)
    assert (pd.Series(labels).groupby(groups).nunique() == 1).all()
    largest = np.bincount(groups).max()
    for name in ("polyp", "background"):
        assert abs((labels == name).sum() - (index["label"] == name).sum()) <= largest
    np.testing.assert_array_equal(labels, shuffle_labels(index["label"].to_numpy(), groups, seed))


def test_shuffled_labels_are_on_record():
    index = make_index(30)
    params = protocol("group", shuffle_labels=True)
    table = assign_folds(index, params, 42)
    assert list(table) == ["id", "fold", "subset", "label"]
    assert describe_split(index, table, params, grouped=True, seed=42)["labels"] == "shuffled"
    own = assign_folds(index, protocol("group"), 42)
    assert list(own) == ["id", "fold", "subset"]
    assert describe_split(index, own, protocol("group"), grouped=True, seed=42)["labels"] == "true"


# What cannot be split


def test_a_class_with_fewer_groups_than_folds_is_named():
    index = make_index(10)
    index.loc[~index["group"].isin(["g0", "g1"]), "label"] = "background"
    with pytest.raises(InputError) as caught:
        assign_folds(index, protocol("group"), 42)
    expected = "split: class 'polyp' has 2 group(s), fewer than split.folds (3); lower split.folds or add data"
    assert str(caught.value) == expected


def test_groups_are_counted_after_joining():
    index = make_index(3, frames=1)
    index["hash"] = np.where(index["group"] == "g2", index["hash"][0], index["hash"])
    with pytest.raises(InputError, match=r"class 'background' has 2 group\(s\), fewer than split\.folds \(3\)"):
        assign_folds(index, protocol("group"), 42)


def test_a_published_test_subset_without_a_class_is_named():
    index = make_index(12)
    index["official"] = np.where((index["group"] == "g0") & (index["label"] == "polyp"), "test", "train")
    with pytest.raises(InputError, match="subset test holds no crop of class 'background'"):
        assign_folds(index, protocol("official"), 42)


@pytest.mark.parametrize("per_class", [None, 6])
def test_what_is_drawn_for_validation_shares_no_group_with_a_published_test_subset(per_class):
    index = make_index(40)
    frames = index["frame"].str.extract(r"g(\d+)f(\d)").astype(int)
    index["official"] = np.where((frames[0] < 15) & (frames[1] == 0), "test", "train")  # half a patient each
    params = protocol("official", validation_per_class=per_class)
    table = assign_folds(index, params, 42)
    groups = {name: set(index["group"][table["subset"] == name]) for name in ("train", "val", "test")}
    assert not groups["val"] & (groups["test"] | groups["train"])
    assert groups["train"] & groups["test"]  # as published
    assert ((table["subset"] == "test") == (index["official"] == "test")).all()


def test_folds_of_what_does_not_test_validate_once_each_and_a_drawn_subset_has_no_folds():
    index = make_index(40)
    index["official"] = np.where(index["group"].str[1:].astype(int) < 10, "test", "train")
    seen = []
    for fold in range(5):
        subset = assign_folds(index, protocol("official", folds=5, test_fold=fold), 42)["subset"]
        assert ((subset == "test") == (index["official"] == "test")).all()
        seen += index["id"][subset == "val"].tolist()
    assert sorted(seen) == index["id"][index["official"] == "train"].tolist()
    with pytest.raises(InputError, match=r"or let folds of the rest validate: split\.validation_per_class=null"):
        assign_folds(index, protocol("official", folds=5, test_fold=1, validation_per_class=6), 42)


def test_official_without_a_published_split_is_an_error():
    with pytest.raises(
        InputError, match=r"params\.yaml: split\.protocol is official, but the data set has no official"
    ):
        assign_folds(make_index(12), protocol("official"), 42)


@pytest.mark.parametrize("fold", range(3))
def test_slides_of_kather_2016_make_folds_though_fat_is_on_six_of_them(fold, monkeypatch):
    """With the glass of 08_EMPTY, of two slides alone, none could be made: its card leaves it out."""
    monkeypatch.chdir(ROOT)
    card = read_card("kather-2016")
    slides = {name: [f"{number:02}" for number in range(1, 11)] for name in card.classes}
    tiles = {"03": 64, "04": 19, "05": 68, "06": 68, "07": 44, "10": 24}  # about the shares of that list
    slides["adipose"] = [slide for slide, count in tiles.items() for _ in range(count // 9)]
    rows = [(label, slide) for label in card.classes for slide in slides[label] for _ in range(9)]
    index = make_index(len(rows), 1).drop_duplicates("frame", ignore_index=True)
    index[["label", "group"]] = rows
    index["id"] = range(len(index))
    params = read_params().split.model_copy(update={"test_fold": fold})
    table = assign_folds(index, resolve_split(params, card), 42)
    assert describe_split(index, table, resolve_split(params, card), grouped=True, seed=42)["group_disjoint"] is True
    glass = pd.concat([index, index[index["group"].isin(["06", "10"])].assign(label="empty")], ignore_index=True)
    with pytest.raises(InputError, match="class 'empty' has 2 group"):
        assign_folds(glass.assign(id=range(len(glass))), resolve_split(params, card), 42)


# Real data


@pytest.mark.real
def test_the_chest_ct_of_its_name_alone_repeats_no_test_slice(shared_data, tiny_params, monkeypatch):
    monkeypatch.chdir(ROOT)
    card = read_card("chest-ct")
    frames = read_frames(card, shared_data / "chest-ct")
    rows, images = [], []
    for _, crops in crop_frames(frames, card.classes, tiny_params.crop, 32, 42):
        rows += crops.rows
        images += list(crops.images)
    index = pd.DataFrame(rows)
    index.insert(0, "id", range(len(index)))
    index = index.assign(digest=crop_digests(np.stack(images)))
    params = resolve_split(read_params().split, card)
    description = describe_split(index, assign_folds(index, params, 42), params, grouped=True, seed=42)
    assert set(description["proof"].values()) == {0}
    assert description["duplicates"]["repeated_crops_in_test"] == 0
    assert description["group_disjoint"] is True
    kept = params.model_copy(update={"drop_duplicates": False})
    description = describe_split(index, assign_folds(index, kept, 42), kept, grouped=True, seed=42)
    assert description["proof"]["identical_frames_across_subsets"] > 0


@pytest.mark.real
def test_cvc_clinicdb_by_sequence(shared_data, tiny_params, monkeypatch):
    monkeypatch.chdir(ROOT)
    card = read_card("cvc-clinicdb")
    frames = read_frames(card, shared_data / "cvc-clinicdb")[::5]
    rows = [row for _, crops in crop_frames(frames, card.classes, tiny_params.crop, 32, 42) for row in crops.rows]
    index = pd.DataFrame(rows)
    index.insert(0, "id", range(len(index)))
    index = index.assign(digest=index["id"].map("{:016x}".format))
    table = assign_folds(index, protocol("group"), 42)
    description = describe_split(index, table, protocol("group"), grouped=True, seed=42)
    assert description["groups"] == 29
    assert description["group_disjoint"] is True
    assert set(description["proof"].values()) == {0}
