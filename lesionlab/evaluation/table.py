"""metrics/evaluate.json and subgroups.csv as a short table to read."""

import pandas as pd

COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "roc_auc": "AUC",
    "ece": "calibration error",
    "error_at_90_coverage": "error at 90 % coverage",
}
WIDTH = 24


KEPT_APART = {
    "card": "group-disjoint",
    "runs": "runs of like images apart, patients unknown",
    "near-duplicates": "near-duplicates apart, patients unknown",
}


def kept_apart(metrics: dict) -> str:
    """What the split kept apart, as a metrics file says it: groups, runs, near-duplicates, or not even those."""
    return KEPT_APART[metrics["grouped_by"]] if metrics["group_disjoint"] else "NOT group-disjoint"


def evaluation_table(metrics: dict, subgroups: pd.DataFrame | None = None) -> list[str]:
    """Lines: test figures of models and of chance, differences, weakest subgroups, and the warning if there is one.

    metrics: what metrics/evaluate.json holds. subgroups: plots/evaluate/subgroups.csv; None: no such lines.
    """
    rows = {name: part for name, part in metrics.items() if isinstance(part, dict) and "accuracy" in part}
    head = f"protocol {metrics['protocol']} ({kept_apart(metrics)}), seed {metrics['seed']}"
    first = max(map(len, ["model", *rows, *metrics["comparison"]])) + 2
    lines = [f"{metrics['crops']} test crops of {metrics['groups']} groups, {head}; [95 % interval]"]
    lines.append(f"{'model':<{first}}" + "".join(f"{title:<{WIDTH}}" for title in COLUMNS.values()))
    for name, part in rows.items():
        lines.append(f"{name:<{first}}" + "".join(f"{interval(part.get(key)):<{WIDTH}}" for key in COLUMNS))
    if metrics["comparison"]:
        titles = ("accuracy", "balanced accuracy", "AUC", "McNemar p", "DeLong p")
        lines.append(f"{'difference':<{first}}" + "".join(f"{title:<{WIDTH}}" for title in titles))
    for name, part in metrics["comparison"].items():
        figures = [interval(part[key], "+.3f") for key in ("accuracy", "balanced_accuracy", "roc_auc")]
        figures += [f"{part[key]:.2g}" if part[key] is not None else "-" for key in ("mcnemar_p", "delong_p")]
        lines.append(f"{name.replace('_minus_', ' - '):<{first}}" + "".join(f"{text:<{WIDTH}}" for text in figures))
    if subgroups is not None and len(subgroups):
        lines.append(f"{'weakest subgroup':<{first}}{'accuracy':<{WIDTH}}")
        lines += [f"{name:<{first}}{figure:<{WIDTH}}{where}" for name, figure, where in weakest(subgroups)]
    if metrics["warning"]:
        lines.append(f"warning: {metrics['warning']}")
    return [line.rstrip() for line in lines]


def weakest(subgroups: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Of each column and model the subgroup of lowest accuracy: model, accuracy with interval, which it is."""
    rows = subgroups[subgroups["metric"] == "accuracy"].reset_index(drop=True)
    columns = ["value", "low", "high"]
    rows[columns] = rows[columns].apply(pd.to_numeric, errors="coerce")  # a blank: one group has no interval
    lowest = rows.loc[rows.groupby(["column", "model"], sort=False)["value"].idxmin()]
    return [
        (
            row["model"],
            interval({name: None if pd.isna(row[name]) else row[name] for name in columns}),
            "; ".join(filter(None, (f"{row['column']} {row['level']}", f"{row['crops']} crops", row["note"]))),
        )
        for row in lowest.to_dict("records")
    ]


def interval(figure: dict | None, style: str = ".3f") -> str:
    """`0.962 [0.931, 0.986]`; a figure that is not there or not defined is `-`."""
    if figure is None or figure["value"] is None:
        return "-"
    if figure["low"] is None:
        return f"{figure['value']:{style}}"
    return f"{figure['value']:{style}} [{figure['low']:{style}}, {figure['high']:{style}}]"
