"""figures: run the pipeline on the real data sets and write down what it measured.

    python -m benchmarks.figures --data FOLDER --weights FILE    runs the experiments that are not there yet
    python -m benchmarks.figures                                 only writes the table of those that are

Each row is one `dvc exp run --temp`; the table says its command, protocol, seed and 95 % intervals.

writes  docs/figures.md, and the same table between the markers of README.md
"""

import json
import shlex
import subprocess
from pathlib import Path
from typing import Annotated

import dvc.api
from dvc.scm import RevError
from typer import Option

from lesionlab.errors import InputError
from lesionlab.files import whole_file
from lesionlab.stage import run

# CVC-ClinicDB has half the frames, and smaller ones: smaller crops, and one more block trained a little longer.
CVC = {
    "model.image_size": 96,
    "training.label_smoothing": 0.05,
    "finetune.unfrozen_blocks": 2,
    "finetune.learning_rate": 3e-4,
    "finetune.epochs": 14,
    "finetune.patience": 14,
}
EXPERIMENTS = {
    "kvasir-group": ("kvasir-seg", "Kvasir-SEG", {"split.protocol": "group"}),
    "cvc-random": ("cvc-clinicdb", "cvc-clinicdb", {"split.protocol": "random", **CVC}),
    "cvc-group": ("cvc-clinicdb", "cvc-clinicdb", {"split.protocol": "group", **CVC}),
}
README, PAGE = Path("README.md"), Path("docs/figures.md")
BEGIN, END = "<!-- figures: python -m benchmarks.figures -->", "<!-- end of figures -->"
MODELS = ("baseline", "transfer", "finetune")
STAGES = (*MODELS, "evaluate", "detect")


def main(
    data: Annotated[Path | None, Option(help="folder that holds Kvasir-SEG/ and cvc-clinicdb/")] = None,
    weights: Annotated[Path | None, Option(help="ImageNet weights of MobileNetV2 (width 1.0) without its top")] = None,
) -> None:
    """Run what is missing, where data and weights are given, and write the tables."""
    if BEGIN not in README.read_text():
        raise InputError(f"{README}: the line {BEGIN!r} is missing; the table goes below it")
    lines = []
    for name, (dataset, folder, changes) in EXPERIMENTS.items():
        if data is not None and weights is not None and measured(name) is None:
            subprocess.run(command(name, dataset, data / folder, changes, weights), check=True)
        metrics = measured(name)
        if metrics is not None:
            words = command(name, dataset, f"DATA/{folder}", changes, "WEIGHTS")
            lines += [*rows(name, metrics), f"`{shlex.join(words)}`", ""]
    if not lines:
        raise InputError("no experiment of this name is here; give --data and --weights to run them")
    table = "\n".join(lines)
    with whole_file(PAGE) as temporary:
        temporary.write_text(f"# Measured figures\n\nWritten by `python -m benchmarks.figures`.\n\n{table}")
    before, rest = README.read_text().split(BEGIN)
    after = rest.split(END)[1]
    with whole_file(README) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n{table}{END}{after}")


def command(name: str, dataset: str, source: Path | str, changes: dict, weights: Path | str) -> list[str]:
    """The experiment as a command line."""
    network = {"model.backbone": "mobilenetv2", "model.weights": weights}
    settings = {"dataset": dataset, "download.source": source, **network, **changes}
    settings = [word for key, value in settings.items() for word in ("-S", f"{key}={value}")]
    return ["dvc", "exp", "run", "--temp", "-n", name, *settings]


def measured(name: str) -> dict[str, dict] | None:
    """The metrics files of an experiment by stage; None when there is no such experiment."""
    try:
        return {stage: json.loads(dvc.api.read(f"metrics/{stage}.json", rev=name)) for stage in STAGES}
    except (RevError, FileNotFoundError):
        return None


def rows(name: str, metrics: dict[str, dict]) -> list[str]:
    """The table of one experiment in Markdown, with its protocol, sizes and seed."""
    evaluated, detected = metrics["evaluate"], metrics["detect"]
    groups = "group-disjoint" if evaluated["group_disjoint"] else "**not group-disjoint**"
    lines = [
        f"**{name}**: protocol {evaluated['protocol']} ({groups}), seed {evaluated['seed']}; "
        f"{evaluated['crops']} test crops of {evaluated['groups']} groups, {detected['frames']} test frames",
        "",
        "| | validation accuracy | test accuracy | test AUC |",
        "|---|---|---|---|",
    ]
    for model in MODELS:
        accuracy, area = (interval(evaluated[model][key]) for key in ("accuracy", "roc_auc"))
        lines.append(f"| {model} | {metrics[model]['validation']['accuracy']:.3f} | {accuracy} | {area} |")
    operating = detected["operating"]
    lines += [
        "",
        f"Detection at the threshold chosen on validation frames: recall {interval(operating['recall'])} at "
        f"{interval(operating['false_positives_per_frame'])} false positives a frame; sensitivity at 1 false positive "
        f"a frame on the test frames' own FROC {detected['froc']['1']:.3f}.",
        "",
    ]
    return lines


def interval(figure: dict[str, float]) -> str:
    """A value with its 95 % interval."""
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


if __name__ == "__main__":
    run(main, __doc__, stage=False)
