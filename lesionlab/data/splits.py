"""Which crops train, validate and test: by groups that never cross, with the proof."""

from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from lesionlab.data.cards import SUBSETS
from lesionlab.errors import InputError
from lesionlab.params import SplitParams
from lesionlab.seeds import derive_seed

HASH_BITS = 64


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
    pairs = [np.zeros((0, 2), dtype="int64")]
    for position, row in enumerate(rows[:-1]):
        others = rows[position + 1 :]
        close = others[np.bitwise_count(hashes[others] ^ hashes[row]) <= bits]
        pairs.append(np.stack([np.full(len(close), row), close], axis=1))
    return np.concatenate(pairs)


def join_near_duplicates(index: pd.DataFrame, bits: int) -> np.ndarray:
    """Group number of each crop after groups that hold near-duplicate frames became one: (n,) int."""
    group, _ = pd.factorize(index["group"])
    value, distinct = pd.factorize(index["hash"])
    hashes = np.array([int(text, 16) for text in distinct], dtype="uint64")
    first, second = near_duplicates(hashes, bits).T
    size = len(distinct)
    # One node a hash, then one a group: crops tie their hash to their group, near-duplicates tie hashes.
    rows, columns = np.r_[value, first], np.r_[size + group, second]
    nodes = size + group.max() + 1
    edges = coo_matrix((np.ones(len(rows), dtype="int8"), (rows, columns)), shape=(nodes, nodes))
    _, component = connected_components(edges, directed=False)
    joined, _ = pd.factorize(component[size + group])
    return joined


def assign_folds(index: pd.DataFrame, params: SplitParams, seed: int) -> pd.DataFrame:
    """A row a crop: id, fold (0 .. folds - 1, -1 for crops of an official test set), subset (train, val, test).

    group: folds by joined groups, stratified by label; fold `test_fold` tests and the next one validates.
    random: the same with every frame a group of its own, to reproduce figures that were published so.
    official: the published test subset; the published validation subset, or fold `test_fold` of the rest by groups.
    Raises InputError when a class has fewer groups than folds or the data set has no official split.
    Source of the method: sklearn.model_selection.StratifiedGroupKFold.
    """
    random = params.protocol == "random"
    groups = pd.factorize(index["frame"])[0] if random else join_near_duplicates(index, params.near_duplicate_bits)
    official = index["official"].to_numpy()
    if params.protocol == "official" and not (official == "test").any():
        raise InputError("params.yaml: split.protocol is official, but the data set has no official test subset")
    drawn = official != "test" if params.protocol == "official" else np.ones(len(index), dtype=bool)
    _check_groups(index[drawn], groups[drawn], params.folds)
    folds = np.full(len(index), -1)
    folder = StratifiedGroupKFold(params.folds, shuffle=True, random_state=derive_seed(seed, "split"))
    rows = np.flatnonzero(drawn)
    labels = index["label"].to_numpy()[rows]
    for number, (_, members) in enumerate(folder.split(rows, labels, groups[rows])):
        folds[rows[members]] = number
    subset = np.full(len(index), "train", dtype=object)
    if params.protocol == "official":
        published = (official == "val").any()
        subset[official == "val" if published else folds == params.test_fold] = "val"
        subset[official == "test"] = "test"
    else:
        subset[folds == params.test_fold] = "test"
        subset[folds == (params.test_fold + 1) % params.folds] = "val"
    for name in SUBSETS:
        for label in index["label"].unique():
            if not ((subset == name) & (index["label"] == label)).any():
                raise InputError(
                    f"split: subset {name} holds no crop of class '{label}'; lower split.folds, or check the labels"
                )
    return pd.DataFrame({"id": index["id"], "fold": folds, "subset": subset})


def _check_groups(index: pd.DataFrame, groups: np.ndarray, folds: int) -> None:
    counts = pd.Series(groups).groupby(index["label"].to_numpy()).nunique()
    for label, count in counts.items():
        if count < folds:
            raise InputError(
                f"split: class '{label}' has {count} group(s), fewer than split.folds ({folds}); lower split.folds "
                "or add data"
            )


def describe_split(index: pd.DataFrame, split: pd.DataFrame, params: SplitParams, *, grouped: bool, seed: int) -> dict:
    """Sizes, class balance and the proof: groups and near-duplicate frames that lie in more than one subset.

    grouped: whether the card names groups at all. Raises InputError when the protocol is `group` and a group is
    shared all the same.
    """
    subset = split["subset"].to_numpy()
    joined = join_near_duplicates(index, params.near_duplicate_bits)
    value, distinct = pd.factorize(index["hash"])
    hashes = np.array([int(text, 16) for text in distinct], dtype="uint64")
    subsets_of_hash = pd.Series(subset).groupby(value).agg(set)
    pairs = near_duplicates(hashes, params.near_duplicate_bits)
    across = sum(len(subsets_of_hash[a] | subsets_of_hash[b]) > 1 for a, b in pairs)
    shared_groups = int((pd.Series(subset).groupby(index["group"].to_numpy()).nunique() > 1).sum())
    shared_frames = int((pd.Series(subset).groupby(index["frame"].to_numpy()).nunique() > 1).sum())
    proof = {
        "groups_in_two_subsets": shared_groups,
        "frames_in_two_subsets": shared_frames,
        "identical_frames_across_subsets": int((subsets_of_hash.map(len) > 1).sum()),
        "near_duplicates_across_subsets": int(across),
    }
    if params.protocol == "group" and any(proof.values()):
        raise InputError(f"split: groups are shared between subsets: {proof}; this is a fault of the program")
    sizes = {}
    for name in SUBSETS:
        chosen = subset == name
        sizes[name] = {
            "crops": int(chosen.sum()),
            "frames": index["frame"][chosen].nunique(),
            "groups": len(np.unique(joined[chosen])),
            "classes": index["label"][chosen].value_counts().sort_index().to_dict(),
        }
    return {
        "protocol": params.protocol,
        "group_disjoint": bool(grouped and params.protocol != "random" and not any(proof.values())),
        "seed": seed,
        "folds": params.folds,
        "groups": index["group"].nunique(),
        "groups_after_joining_near_duplicates": len(np.unique(joined)),
        "proof": proof,
        "subsets": sizes,
    }
