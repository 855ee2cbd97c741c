"""The figures of the last run as a short table: python -m lesionlab.summary."""

from pathlib import Path

import typer

from lesionlab.files import read_json
from lesionlab.stage import run


def main(metrics: Path = Path("metrics")) -> None:
    """Print accuracy and AUC of each model, detection figures, and where the pictures are."""
    for line in table(read_json(metrics / "evaluate.json"), read_json(metrics / "detect.json")):
        typer.echo(line)


def table(evaluated: dict, detected: dict) -> list[str]:
    """Lines of the table: test figures with 95 % intervals, their protocol and seed."""
    kind = "group-disjoint" if evaluated["group_disjoint"] else "NOT group-disjoint"
    head = f"protocol {evaluated['protocol']} ({kind}), seed {evaluated['seed']}"
    lines = ["", f"{evaluated['crops']} test crops of {evaluated['groups']} groups, {head}; [95 % interval]"]
    lines.append(f"{'model':<12}{'accuracy':<24}{'AUC':<24}")
    for model in ("baseline", "transfer", "finetune"):
        figures = evaluated[model]
        lines.append(f"{model:<12}{_figure(figures['accuracy']):<24}{_figure(figures['roc_auc']):<24}")
    operating = detected.get("operating", {})
    if "recall" in operating:
        lines.append(
            f"detection on {detected['frames']} test frames: recall {_figure(operating['recall'])}, "
            f"false positives a frame {_figure(operating['false_positives_per_frame'])}"
        )
    lines.append("pictures: pictures/crops.png, pictures/evaluate/, pictures/detections/")
    return lines


def _figure(figure: dict) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


if __name__ == "__main__":
    run(main, __doc__, stage=False)
