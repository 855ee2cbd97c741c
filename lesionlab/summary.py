"""The figures of the last run as a short table: python -m lesionlab.summary."""

from pathlib import Path

import typer

from lesionlab.evaluation.table import evaluation_table, interval
from lesionlab.files import read_json
from lesionlab.stage import run


def main(metrics: Path = Path("metrics")) -> None:
    """Print accuracy and AUC of each model, detection figures, and where the pictures are."""
    for line in table(read_json(metrics / "evaluate.json"), read_json(metrics / "detect.json")):
        typer.echo(line)


def table(evaluated: dict, detected: dict) -> list[str]:
    """Lines of the table: test figures with 95 % intervals, their protocol and seed."""
    lines = ["", *evaluation_table(evaluated)]
    operating = detected.get("operating", {})
    if "recall" in operating:
        lines.append(
            f"detection on {detected['frames']} test frames: recall {interval(operating['recall'])}, "
            f"false positives a frame {interval(operating['false_positives_per_frame'])}"
        )
    lines.append("pictures: pictures/crops.png, pictures/evaluate/, pictures/detections/, pictures/explain/")
    lines.append("all on one page: make report")
    return lines


if __name__ == "__main__":
    run(main, __doc__, stage=False)
