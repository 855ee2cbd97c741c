"""The figures of the last run as a short table: python -m lesionlab.summary."""

from pathlib import Path

import pandas as pd
import typer

from lesionlab.evaluation.table import evaluation_table, interval
from lesionlab.files import read_json, read_table
from lesionlab.stage import run


def main(metrics: Path = Path("metrics"), plots: Path = Path("plots/evaluate")) -> None:
    """Print what each model reached, where it is weakest, detection, heat inside lesions, and where pictures are."""
    subgroups = read_table(plots / "subgroups.csv", ("model", "column", "level"))
    found = (read_json(metrics / f"{stage}.json") for stage in ("evaluate", "detect", "explain"))
    for line in table(*found, subgroups):
        typer.echo(line)


def table(evaluated: dict, detected: dict, explained: dict, subgroups: pd.DataFrame) -> list[str]:
    """Lines of the table: test figures with 95 % intervals, their protocol and seed."""
    lines = ["", *evaluation_table(evaluated, subgroups)]
    operating = detected.get("operating", {})
    if "recall" in operating:
        lines.append(
            f"detection on {detected['frames']} test frames: recall {interval(operating['recall'])}, "
            f"false positives a frame {interval(operating['false_positives_per_frame'])}"
        )
    heat = explained.get("gradcam", {})
    if "times_random" in heat:
        lines.append(
            f"Grad-CAM on {explained['lesions']} test lesions: share of heat inside {interval(heat['share_inside'])}, "
            f"{interval(heat['times_random'], '.2f')} times a random map's"
        )
    lines.append("pictures: pictures/crops.png, pictures/evaluate/, pictures/detections/, pictures/explain/")
    lines.append("all on one page: make report")
    return lines


if __name__ == "__main__":
    run(main, __doc__, stage=False)
