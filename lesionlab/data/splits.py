"""Which crops train, validate and test: by groups that never cross, with the proof."""

import hashlib
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from lesionlab.data.cards import SUBSETS
from lesionlab.data.hashes import HASH_BITS
from lesionlab.errors import InputError
from lesionlab.params import SplitParams
from lesionlab.seeds import derive_seed, generator

DROPPED = "none"  # the subset of crops that are in no subset
PAIR_BLOCK = 256  # rows compared with all later ones at once


def near_duplicates(hashes: np.ndarray, bits: int) -> np.ndarray:
    """Pairs of perceptual hashes that differ in at most `bits` of their 64 bits: (m, 2) row numbers, first < second.

    hashes: (n,) uint64, distinct. Exact: of bits + 1 bands of a hash at least one is untouched by `bits` changes, so
    only rows that share a band are compared.
    """
    edges = np.linspace(0, HASH_BITS, bits + 2).astype(int)
    found = [np.zeros((0, 2), dtype="int64")]
    for low, high in pairwise(edges):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(band[order]) != 0])
        for rows in np.split(order, starts[1:]):
            if len(rows) > 1:
                found.append(_close_pairs(hashes, np.sort(rows), bits))
    return np.unique(np.concatenate(found), axis=0)


def _close_pairs(hashes: np.ndarray, rows: np.ndarray, bits: int) -> np.ndarray:
    pairs = []
    for start in range(0, len(rows), PAIR_BLOCK):
        differing = np.bitwise_count(hashes[rows[start : start + PAIR_BLOCK], None] ^ hashes[rows[start:]])
        first, second = np.nonzero(np.triu(differing <= bits, k=1))
        pairs.append(rows[start + np.stack([first, second], axis=1)])
    return np.concatenate(pairs)


def join_near_duplicates(index: pd.DataFrame, bits: int) -> np.ndarray:
    """Group number of each crop after groups that hold near-duplicate frames became one: (n,) int."""
    group, _ = pd.factorize(index["group"])
    value, distinct = pd.factorize(index["hash"])
    first, second = near_duplicates(_hashes(distinct), bits).T
    size = len(distinct)
    # One node a hash, then one a group: crops tie their hash to their group, near-duplicates tie hashes.
    rows, columns = np.r_[value, first], np.r_[size + group, second]
    nodes = size + group.max() + 1
    edges = coo_matrix((np.ones(len(rows), dtype="int8"), (rows, columns)), shape=(nodes, nodes))
    _, component = connected_components(edges, directed=False)
    joined, _ = pd.factorize(component[size + group])
    return joined


def crop_digests(images: np.ndarray) -> list[str]:
    """A checksum of each crop's pixels: (n, size, size, 3) uint8 to n texts; identical crops have the same."""
    return [hashlib.blake2b(np.ascontiguousarray(image), digest_size=8).hexdigest() for image in images]


def assign_folds(index: pd.DataFrame, params: SplitParams, seed: int) -> pd.DataFrame:
    """A row a crop: id, fold (0 .. folds - 1, -1 where none was drawn for it), subset (train, val, test, none).

    Where near-duplicates join groups one more column, group, that counts in place of the index's.

    group: folds by joined groups, stratified by label; fold `test_fold` tests and the next one validates.
    random: the same with every frame a group of its own, to reproduce figures that were published so.
    official: the published test subset; the published validation subset, or fold `test_fold` of the rest by groups.
    Where the published split is numbered folds, they take the place of drawn ones.

    validation_per_class: so many frames a class validate, in whole groups, on top of a published validation subset.
    No crop that is drawn for validation is of a group that tests; one of such a group that a published split trains on
    is left there.
    drop_duplicates: subset `none` for what repeats a crop that counts more, see `_drop_duplicates`.
    shuffle_labels: one more column, label, that counts in place of the index's.

    index: as the crop stage writes it, with the column digest of `crop_digests`. params: of `resolve_split`, no `auto`.
    Raises InputError when a class has fewer groups than folds, or the data set has no official split,
    or, with a later fold than the first, one that is the same for every fold.
    Source of the method: sklearn.model_selection.StratifiedGroupKFold.
    """
    joined = join_near_duplicates(index, params.near_duplicate_bits)
    groups = pd.factorize(index["frame"])[0] if params.protocol == "random" else joined
    if params.shuffle_labels:
        index = index.assign(label=shuffle_labels(index["label"].to_numpy(), joined, seed))
    published = index["official"].to_numpy(dtype=str) if params.protocol == "official" else np.full(len(index), "")
    folds = _published_folds(index["frame"].to_numpy(), published, params)
    official_subsets = (published == "test").any()
    val = (published == "val") & params.official_validation
    if folds is None:
        if params.protocol == "official" and not official_subsets:
            raise InputError("params.yaml: split.protocol is official, but the data set has no official test subset")
        if official_subsets and (val.any() or params.validation_per_class):
            folds = np.full(len(index), -1)  # none tests, and none validates
        else:
            folds = _draw_folds(index, groups, published != "test", params.folds, seed)
    test = published == "test" if official_subsets else folds == params.test_fold
    if params.test_fold and official_subsets and (val.any() or params.validation_per_class):
        raise InputError(
            f"params.yaml: split.test_fold is {params.test_fold}, but under split.protocol official the data set has "
            "one test and one validation subset, whatever the fold; take fold 0 (studies: folds: [0]) or protocol "
            "group, or let folds of the rest validate: split.validation_per_class=null, split.official_validation=false"
        )
    # A published split may share groups with its own test subset. What is drawn here for validation does not.
    apart = ~np.isin(groups, groups[test])
    if params.validation_per_class:
        val |= _draw_validation(index, groups, ~test & ~val & apart, params.validation_per_class, seed)
    elif not val.any():
        val = apart & (folds == (params.test_fold if official_subsets else (params.test_fold + 1) % params.folds))
    subset = np.select([test, val], ["test", "val"], "train").astype(object)
    if params.drop_duplicates:
        subset = _drop_duplicates(index, subset, params.near_duplicate_bits)
    for name in SUBSETS:
        for label in index["label"].unique():
            if not ((subset == name) & (index["label"] == label)).any():
                raise InputError(
                    f"split: subset {name} holds no crop of class '{label}'; lower split.folds or "
                    "split.validation_per_class, or check the labels"
                )
    table = _with_groups(pd.DataFrame({"id": index["id"], "fold": folds, "subset": subset}), index["group"], joined)
    return table.assign(label=index["label"]) if params.shuffle_labels else table


def _with_groups(table: pd.DataFrame, group: pd.Series, joined: np.ndarray) -> pd.DataFrame:
    """The split with the groups that joined, each named after its first, where they are not the index's."""
    names = group.groupby(joined).transform("first")
    return table if names.equals(group) else table.assign(group=names)


def external_split(index: pd.DataFrame, training: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    """A row a crop of a data set that only tests: id, fold (-1), subset (test, none), group as in `assign_folds`.

    training: index of the data set whose crops trained. Frames near one of its frames, whatever its subset, are left
    out under `drop_duplicates`, as are repeats of a crop.
    Raises InputError when the two have other classes, or such frames are found and not left out.
    """
    classes, trained = (sorted(table["label"].unique()) for table in (index, training))
    if classes != trained:
        raise InputError(
            f"split: the external data set has the classes {', '.join(classes)}, the one that trains has "
            f"{', '.join(trained)}; choose two of the same classes"
        )
    near = near_other(index, training, params.near_duplicate_bits)
    if near.any() and not params.drop_duplicates:
        frames = index["frame"][near].unique()
        raise InputError(
            f"split: {len(frames)} of {index['frame'].nunique()} frames (first: {frames[0]}) are near-duplicates of "
            "frames of the data set that trains; leave them out with split.drop_duplicates: true, or if they only look "
            f"alike lower split.near_duplicate_bits ({params.near_duplicate_bits}), both of the external data set"
        )
    subset = np.where(near, DROPPED, "test").astype(object)
    if params.drop_duplicates:
        subset = _drop_duplicates(index, subset, params.near_duplicate_bits)
    for label in classes:
        if not ((subset == "test") & (index["label"] == label)).any():
            raise InputError(
                f"split: every crop of class '{label}' repeats one of the data set that trains; is it the same data?"
            )
    table = pd.DataFrame({"id": index["id"], "fold": -1, "subset": subset})
    return _with_groups(table, index["group"], join_near_duplicates(index, params.near_duplicate_bits))


def near_other(index: pd.DataFrame, other: pd.DataFrame, bits: int) -> np.ndarray:
    """Which crops show a frame near any frame of another index: (n,) bool."""
    distinct = np.unique(np.concatenate([_hashes(index["hash"]), _hashes(other["hash"])]))
    in_other = np.isin(distinct, _hashes(other["hash"].unique()))
    first, second = near_duplicates(distinct, bits).T
    near = in_other.copy()
    near[first[in_other[second]]] = True
    near[second[in_other[first]]] = True
    return near[np.searchsorted(distinct, _hashes(index["hash"]))]


def shuffle_labels(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """One label at random for each group: (n,) labels and group numbers to (n,) labels.

    The classes keep their shares of the crops, to within a group: in random order the groups are cut where the shares
    say so.
    """
    names, counts = np.unique(labels, return_counts=True)
    sizes = np.bincount(groups)
    order = generator(seed, "split", "shuffle").permutation(len(sizes))
    middle = sizes[order].cumsum() - sizes[order] / 2
    drawn = np.empty(len(sizes), dtype=int)
    drawn[order] = np.searchsorted(counts.cumsum()[:-1], middle)
    return names[drawn[groups]]


def _published_folds(frames: np.ndarray, published: np.ndarray, params: SplitParams) -> np.ndarray | None:
    """Fold numbers from 0 where the data set publishes numbered folds, else None."""
    numbered = np.char.isdigit(published)
    if not numbered.any():
        return None
    if not numbered.all():
        raise InputError(
            f"split: {frames[~numbered][0]} has no published fold, but others have; give it one in the data set's own "
            "table, take it out, or take split.protocol group"
        )
    numbers, folds = np.unique(published.astype(int), return_inverse=True)
    if len(numbers) != params.folds:
        raise InputError(
            f"params.yaml: split.folds is {params.folds}, but the data set publishes {len(numbers)} folds; set it so"
        )
    return folds


def _draw_folds(index: pd.DataFrame, groups: np.ndarray, drawn: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each crop where `drawn`, -1 elsewhere; by groups, stratified by label."""
    _check_groups(index[drawn], groups[drawn], folds)
    result = np.full(len(index), -1)
    folder = StratifiedGroupKFold(folds, shuffle=True, random_state=derive_seed(seed, "split"))
    rows = np.flatnonzero(drawn)
    for number, (_, members) in enumerate(folder.split(rows, index["label"].to_numpy()[rows], groups[rows])):
        result[rows[members]] = number
    return result


def _draw_validation(
    index: pd.DataFrame, groups: np.ndarray, pool: np.ndarray, per_class: int, seed: int
) -> np.ndarray:
    """Which crops of the pool validate: groups in random order, each whole, up to `per_class` frames a class.

    A group that would exceed the number of any class is passed over, so a class may end a little below it.
    """
    frames = pd.DataFrame({"group": groups, "label": index["label"], "frame": index["frame"]})[pool].drop_duplicates()
    counts = frames.groupby(["group", "label"]).size().unstack(fill_value=0)
    room = np.full(counts.shape[1], per_class)
    chosen = []
    for row in generator(seed, "split", "validation").permutation(len(counts)):
        if (counts.to_numpy()[row] <= room).all():
            room -= counts.to_numpy()[row]
            chosen.append(counts.index[row])
    return pool & np.isin(groups, chosen)


def _drop_duplicates(index: pd.DataFrame, subset: np.ndarray, bits: int) -> np.ndarray:
    """`subset` with `none` for crops that repeat what counts more: test before validation before training.

    A frame with a near-duplicate in a later subset is left out of its own; of identical test crops the first counts.
    """
    subset = subset.copy()
    value, distinct = pd.factorize(index["hash"])
    pairs = near_duplicates(_hashes(distinct), bits)
    pairs = np.concatenate([pairs, pairs[:, ::-1], np.repeat(np.arange(len(distinct))[:, None], 2, axis=1)])
    for later, earlier in (("test", ("val", "train")), ("val", ("train",))):
        near = np.unique(pairs[np.isin(pairs[:, 0], value[subset == later]), 1])
        subset[np.isin(subset, earlier) & np.isin(value, near)] = DROPPED
    repeated = index["digest"].where(subset == "test", index["id"].astype(str)).duplicated()
    subset[repeated.to_numpy() & (subset == "test")] = DROPPED
    return subset


def _hashes(texts: np.ndarray) -> np.ndarray:
    return np.array([int(text, 16) for text in texts], dtype="uint64")


def _check_groups(index: pd.DataFrame, groups: np.ndarray, folds: int) -> None:
    counts = pd.Series(groups).groupby(index["label"].to_numpy()).nunique()
    for label, count in counts.items():
        if count < folds:
            raise InputError(
                f"split: class '{label}' has {count} group(s), fewer than split.folds ({folds}); lower split.folds "
                "or add data"
            )


def describe_split(index: pd.DataFrame, split: pd.DataFrame, params: SplitParams, *, grouped: bool, seed: int) -> dict:
    """Sizes, class balance and the proof: groups, identical and near-duplicate frames that lie in more than one subset.

    grouped: whether the card names groups at all. Raises InputError when the protocol is `group` and a group is
    shared all the same.
    """
    if "label" in split:
        index = index.assign(label=split["label"])
    joined = join_near_duplicates(index, params.near_duplicate_bits)
    counted = (split["subset"] != DROPPED).to_numpy()
    proof = _proof(index[counted], split["subset"].to_numpy()[counted], params.near_duplicate_bits)
    if params.protocol == "group" and any(proof.values()):
        raise InputError(f"split: groups are shared between subsets: {proof}; this is a fault of the program")
    sizes = {}
    for name in SUBSETS:
        chosen = (split["subset"] == name).to_numpy()
        sizes[name] = {
            "crops": int(chosen.sum()),
            "frames": index["frame"][chosen].nunique(),
            "groups": len(np.unique(joined[chosen])),
            "classes": index["label"][chosen].value_counts().sort_index().to_dict(),
        }
    return {
        "protocol": params.protocol,
        "group_disjoint": bool(grouped and params.protocol != "random" and not any(proof.values())),
        "labels": "shuffled" if params.shuffle_labels else "true",
        "seed": seed,
        "folds": params.folds,
        "groups": index["group"].nunique(),
        "groups_after_joining_near_duplicates": len(np.unique(joined)),
        "proof": proof,
        "duplicates": _duplicates(index, joined, split["subset"].to_numpy()),
        "subsets": sizes,
    }


def describe_external(
    index: pd.DataFrame,
    split: pd.DataFrame,
    training: pd.DataFrame,
    params: SplitParams,
    *,
    datasets: tuple[str, str],
    seed: int,
) -> dict:
    """Sizes, class balance, and how many frames are near one of the data set that trains.

    datasets: names of the one that trains and of the external one. Two parts of one data set may share patients
    whatever their pictures look like, so those are not called group-disjoint.
    """
    near = near_other(index, training, params.near_duplicate_bits)
    frames = index["frame"]
    kept = frames[near & (split["subset"] == "test").to_numpy()].nunique()
    description = describe_split(index, split, params, grouped=datasets[0] != datasets[1] and not kept, seed=seed)
    del description["folds"]  # there are none
    description["labels"] = "true"
    description["proof"] |= {"near_duplicates_of_training_frames": kept}
    return description | {
        "trained_on": datasets[0],
        "near_duplicate_bits": params.near_duplicate_bits,
        "training_frames_compared": training["frame"].nunique(),
        "frames_near_training_frames": frames[near].nunique(),
    }


def _proof(index: pd.DataFrame, subset: np.ndarray, bits: int) -> dict[str, int]:
    """What lies in more than one subset: a group-disjoint split has zeros.

    identical_frames: of equal pixels, by their digests. equal_hashes: perceptual hashes that frames of two subsets
    have, be they identical or merely alike. near_duplicates: pairs of different hashes within `bits`.
    """
    value, distinct = pd.factorize(index["hash"])
    subsets_of_hash = pd.Series(subset).groupby(value).agg(set)
    pairs = near_duplicates(_hashes(distinct), bits)
    return {
        "groups_in_two_subsets": _in_two(subset, index["group"]),
        "frames_in_two_subsets": _in_two(subset, index["frame"]),
        "identical_frames_across_subsets": _in_two(subset, index["frame_digest"]),
        "equal_hashes_across_subsets": int((subsets_of_hash.map(len) > 1).sum()),
        "near_duplicates_across_subsets": sum(len(subsets_of_hash[a] | subsets_of_hash[b]) > 1 for a, b in pairs),
    }


def _duplicates(index: pd.DataFrame, joined: np.ndarray, subset: np.ndarray) -> dict[str, int | None]:
    """Repeated crops, pixel by pixel, and what was left out; for whole images groups that hold two labels.

    joined: (n,) groups after near-duplicates joined them, so that one picture under two labels is found too.
    """
    counted, test = subset != DROPPED, subset == "test"
    whole_images = not index["frame"].duplicated().any()
    labels = index.groupby(joined)["label"].nunique()
    return {
        "identical_crops_across_subsets": _in_two(subset[counted], index["digest"][counted]),
        "repeated_crops_in_test": int(index["digest"][test].duplicated().sum()),
        "crops_in_no_subset": int((~counted).sum()),
        "groups_with_two_labels": int((labels > 1).sum()) if whole_images else None,
    }


def _in_two(subset: np.ndarray, keys: pd.Series) -> int:
    """How many of the keys lie in more than one subset."""
    return int((pd.Series(subset).groupby(keys.to_numpy()).nunique() > 1).sum())
