"""leakage: the same set-up under two protocols, with true and with shuffled labels; the gap is the leak."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lesionlab.evaluation.table import kept_apart
from lesionlab.files import read_json
from lesionlab.params import Params
from lesionlab.pictures import SERIES_COLOURS
from lesionlab.studies.figures import GAIN, GAIN_NOTE, cell_intervals, difference, flat
from lesionlab.studies.predictions import read_predictions
from lesionlab.studies.schemas import Leakage
from lesionlab.studies.tables import Paths, Summary, count_tests, decided, interval

LEAKED = ("accuracy", "balanced_accuracy", "roc_auc")
SHOWN = (*LEAKED, GAIN)  # the gain follows the error rate, so its difference is no leak
CELL = ["blocks", "protocol", "labels"]
LEAK = "random - "  # of the protocol in a row that is a leak, before the name of the other
LEAK_NOTES = (
    "The leak's interval takes the test sets of the two protocols as independent.",
    "The leak is taken between folds of the same number: mean ± standard deviation of the differences.",
)
COLOURS = dict(zip(("true", "shuffled"), SERIES_COLOURS, strict=False))


def summarise(study: Leakage, params: Params, paths: Paths) -> Summary:
    """Test figures of each cell and the leak: with one fold 95 % intervals, else mean and deviation of folds."""
    arms = [(blocks, p, s) for blocks in (0, *study.blocks) for p in study.protocols for s in study.shuffle]
    names = {(arm, fold): f"{arm[0]}-{arm[1]}-{arm[2]}-{fold}" for arm in arms for fold in study.folds}
    figures = pd.concat(_figures(paths, name, params) for name in names.values())
    cells, leaks = aggregate(figures), aggregate(leak(figures))
    table = pd.concat([cells, leaks]) if len(leaks) else cells
    classes = int(figures["classes"].iloc[0])
    shown = pd.DataFrame({"unfrozen blocks": table["blocks"], "protocol": table["protocol"], "labels": table["labels"]})
    for name in SHOWN:
        shown[name.replace("_", " ")] = [_shown(row, name) for _, row in table.iterrows()]
    notes = [
        f"Test figures, {_spread(paths, study)}; {params.dataset}, {_protocols(paths, study)}, seed {params.seed}"
        f"{decided(params, classes)}. Chance is a balanced accuracy of {1 / classes:.3f}. {GAIN_NOTE}",
        *(
            f"Leak ({row['protocol']}, true labels), {row['blocks']} unfrozen blocks: {_differences(row)}."
            for _, row in leaks.iterrows()
        ),
    ]
    if len(leaks):
        notes.append(LEAK_NOTES[len(study.folds) > 1])
    return Summary("Leakage", table, shown, notes, draw(cells, 1 / classes), headline(leaks))


def aggregate(figures: pd.DataFrame) -> pd.DataFrame:
    """A row a cell: blocks, protocol, labels, folds, and each figure's mean, low, high, sd.

    figures: a row a cell and fold, with columns <metric>, <metric>_low, <metric>_high. Of several folds the intervals
    are left out, of one fold the deviation; what `figures` lacks is missing.
    """
    rows = []
    columns = [*CELL, "crops", *(f"{name}{end}" for name in SHOWN for end in ("", "_low", "_high"))]
    for cell, folds in figures.reindex(columns=columns).groupby(CELL, sort=False):
        row = dict(zip(CELL, cell, strict=True)) | {"folds": len(folds), "crops": folds["crops"].sum(min_count=1)}
        single = len(folds) == 1
        for name in SHOWN:
            row[name] = folds[name].mean()
            row[f"{name}_low"] = folds[f"{name}_low"].iloc[0] if single else np.nan
            row[f"{name}_high"] = folds[f"{name}_high"].iloc[0] if single else np.nan
            row[f"{name}_sd"] = folds[name].std()
        rows.append(row)
    return pd.DataFrame(rows).astype({"crops": "Int64"}) if rows else pd.DataFrame()


def leak(figures: pd.DataFrame) -> pd.DataFrame:
    """Figures under random minus those under group (or official) with true labels: a row a number of blocks and fold.

    figures: as `aggregate` takes them, with column fold. Empty without both protocols.
    """
    true = figures[figures["labels"] == "true"].set_index(["protocol", "blocks", "fold"])
    protocols = set(true.index.get_level_values("protocol"))
    apart = next((name for name in ("group", "official") if name in protocols), None)
    if apart is None or "random" not in protocols:
        return pd.DataFrame(columns=CELL)
    rows = []
    for (blocks, fold), _ in true.loc["random"].iterrows():
        singly, kept = (_upright(true.loc[(protocol, blocks, fold)]) for protocol in ("random", apart))
        row = {"blocks": blocks, "protocol": f"{LEAK}{apart}", "labels": "true", "fold": fold}
        rows.append(row | flat(difference(singly, kept)))
    return pd.DataFrame(rows)


def headline(leaks: pd.DataFrame) -> dict[str, float]:
    """leak_<metric> of the first row, and of what is known of its spread leak_<metric>_low, _high or _sd."""
    if leaks.empty:
        return {}
    known = leaks.iloc[0][[f"{name}{end}" for name in LEAKED for end in ("", "_low", "_high", "_sd")]].dropna()
    return {f"leak_{name}": float(value) for name, value in known.items()}


def draw(table: pd.DataFrame, chance: float) -> plt.Figure:
    """Balanced accuracy of each cell with its interval or deviation, and chance."""
    figure, axis = plt.subplots(figsize=(6, 4))
    places = list(dict.fromkeys(zip(table["blocks"], table["protocol"], strict=True)))
    for shift, (labels, colour) in zip((-0.12, 0.12), COLOURS.items(), strict=True):
        rows = table[table["labels"] == labels]
        x = np.array([places.index(place) for place in zip(rows["blocks"], rows["protocol"], strict=True)]) + shift
        value = rows["balanced_accuracy"].to_numpy()
        deviation = rows["balanced_accuracy_sd"].fillna(0)
        low = rows["balanced_accuracy_low"].fillna(rows["balanced_accuracy"] - deviation)
        high = rows["balanced_accuracy_high"].fillna(rows["balanced_accuracy"] + deviation)
        axis.errorbar(
            x, value, yerr=[value - low, high - value], fmt="o", color=colour, capsize=4, label=f"{labels} labels"
        )
        for place, height in zip(x, value, strict=True):
            axis.annotate(f"{height:.3f}", (place, height), xytext=(6, 4), textcoords="offset points", fontsize=8)
    axis.axhline(chance, color="#999999", linestyle=":", label="chance")
    several = table["blocks"].nunique() > 1
    axis.set_xticks(range(len(places)), [f"{p}\n{b} blocks" if several else p for b, p in places])
    axis.set(xlabel="protocol", ylabel="balanced accuracy on test crops", xlim=(-0.5, len(places) - 0.5))
    axis.grid(alpha=0.3, axis="y")
    axis.legend(fontsize=8, loc="best")
    return figure


def _figures(paths: Paths, name: str, params: Params) -> pd.DataFrame:
    trained = read_json(paths.metrics / f"{name}.json")
    predictions = read_predictions(paths.predictions / f"{name}.csv", sensitivity=params.training.sensitivity)
    table = cell_intervals(predictions.test, params.evaluate.resamples, params.seed).loc[list(SHOWN)]
    row = {"blocks": int(name.split("-")[0]), "protocol": trained["protocol"], "labels": trained["labels"]}
    row |= {"fold": int(name.split("-")[-1])}
    row |= {"crops": len(predictions.ids), "classes": len(predictions.classes)}
    return pd.DataFrame([row | flat(table)])


def _protocols(paths: Paths, study: Leakage) -> str:
    """The protocols, and what the split of each kept apart."""
    cells = {p: paths.metrics / f"0-{p}-{study.shuffle[0]}-{study.folds[0]}.json" for p in study.protocols}
    return "protocols " + " and ".join(f"{name} ({kept_apart(read_json(path))})" for name, path in cells.items())


def _spread(paths: Paths, study: Leakage) -> str:
    """What stands behind a figure; protocols whose folds are not alike, as of a published test subset, are named."""
    if len(study.folds) == 1:
        return "[95 % interval, bootstrap over groups]"
    tests = {}
    for protocol in study.protocols:
        files = [paths.predictions / f"0-{protocol}-{study.shuffle[0]}-{fold}.csv" for fold in study.folds]
        tests[protocol] = count_tests([read_predictions(file) for file in files])
    alike = len(set(tests.values())) == 1
    named = [tests[study.protocols[0]]] if alike else [f"{text} ({protocol})" for protocol, text in tests.items()]
    return f"mean ± standard deviation of {' and '.join(named)}"


def _upright(row: pd.Series) -> pd.DataFrame:
    """What `flat` made a row of, for LEAKED: a row a metric, value, low, high."""
    ends = {"value": "", "low": "_low", "high": "_high"}
    columns = {column: [row[f"{name}{end}"] for name in LEAKED] for column, end in ends.items()}
    return pd.DataFrame(columns, index=list(LEAKED), dtype=float)


def _shown(row: pd.Series, name: str) -> str:
    leaked = row["protocol"].startswith(LEAK)
    if leaked and name not in LEAKED:
        return ""
    if row["folds"] > 1:
        sign = "+" if leaked else ""
        return f"{row[name]:{sign}.3f} ± {row[f'{name}_sd']:.3f}"
    return interval(row, name, signed=leaked)


def _differences(row: pd.Series) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_shown(row, name)}" for name in LEAKED)
