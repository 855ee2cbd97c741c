"""metrics/evaluate.json as a short table to read."""

COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "roc_auc": "AUC",
    "ece": "calibration error",
    "error_at_90_coverage": "error at 90 % coverage",
}
WIDTH = 24


def evaluation_table(metrics: dict) -> list[str]:
    """Lines: test figures of every model with 95 % intervals, differences of models, and the warning if there is one.

    metrics: what metrics/evaluate.json holds.
    """
    rows = {name: part for name, part in metrics.items() if isinstance(part, dict) and "accuracy" in part}
    kind = "group-disjoint" if metrics["group_disjoint"] else "NOT group-disjoint"
    head = f"protocol {metrics['protocol']} ({kind}), seed {metrics['seed']}"
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
    if metrics["warning"]:
        lines.append(f"warning: {metrics['warning']}")
    return [line.rstrip() for line in lines]


def interval(figure: dict | None, style: str = ".3f") -> str:
    """`0.962 [0.931, 0.986]`; a figure that is not there or not defined is `-`."""
    if figure is None or figure["value"] is None:
        return "-"
    if figure["low"] is None:
        return f"{figure['value']:{style}}"
    return f"{figure['value']:{style}} [{figure['low']:{style}}, {figure['high']:{style}}]"
