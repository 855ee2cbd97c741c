"""figures: run the pipeline and its studies on the real data sets and write down what they measured.

    python -m benchmarks.figures --data FOLDER --weights FILE    runs the experiments that are not there yet
    python -m benchmarks.figures --data ... --only cvc-random    only this one (may be given several times)
    python -m benchmarks.figures --cold cvc-random               times its finetune stage, nothing computed before
    python -m benchmarks.figures                                 only writes the pages of those that are

Each experiment is one `dvc exp run --temp`, of the pipeline or of a study; the pages say its command, protocol, seed,
spread, run time on this machine and the commit it ran on. Experiments live in one clone only: what the pages say of
those that are not in this one stays as it is.

writes  docs/figures.md, docs/*.png, and the table of systems between the markers of README.md
"""

import json
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import dvc.api
import pandas as pd
from dvc.scm import RevError
from typer import Option

from lesionlab.errors import InputError
from lesionlab.files import read_json, whole_file, write_json
from lesionlab.progress import progress
from lesionlab.stage import run

README, PAGE, SECONDS = Path("README.md"), Path("docs/figures.md"), Path("benchmarks/seconds.json")
BEGIN, END = "<!-- figures: python -m benchmarks.figures -->", "<!-- end of figures -->"
MODELS = ("baseline", "transfer", "finetune")
# Near-duplicate frames of the next sequence are in the training subset, as in the published protocol: what helps is to
# fit them closely. Chosen on the validation accuracy of this split.
CVC = {
    "model.image_size": 96,
    "training.label_smoothing": 0.05,
    "finetune.unfrozen_blocks": 2,
    "finetune.learning_rate": 3e-4,
    "finetune.augment": False,
    "finetune.epochs": 5,
    "finetune.patience": 5,
}
UPRIGHT = {"augment.vertical_flip": False, "augment.rotation": 0.03}  # films and slices are never upside down


@dataclass(frozen=True)
class Experiment:
    """One `dvc exp run`. study: None for the pipeline. data: parameter to folder or file below --data."""

    title: str
    dataset: str
    data: str
    settings: dict[str, object] = field(default_factory=dict)
    study: str | None = None
    external: tuple[str, str] | None = None
    note: str = ""

    def command(self, name: str, data: Path | str, weights: Path | str) -> list[str]:
        """The command line, in the repository's root or the study's folder; paths are relative to the root."""
        network = {"model.backbone": "mobilenetv2", "model.weights": weights}
        settings = {"dataset": self.dataset, "download.source": f"{data}/{self.data}", **network, **self.settings}
        # `@` marks a key of the study itself; ++ sets keys of `set` that its params.yaml leaves to the repository's.
        words = [
            (key.lstrip("@") if key.startswith("@") else f"++set.{key}" if self.study else key, value)
            for key, value in settings.items()
        ]
        if self.external:
            words += [
                ("external.dataset", self.external[0]),
                ("external.download.source", f"{data}/{self.external[1]}"),
            ]
        changes = [word for key, value in words for word in ("-S", f"{key}={_yaml(value)}")]
        return ["dvc", "exp", "run", "--temp", "-n", name, *changes]

    @property
    def folder(self) -> Path:
        """Where the command runs."""
        return Path("studies") / self.study if self.study else Path()


SMALL = {"model.image_size": 64, "detect.max_frames": 20, "explain.crops": 20}
FINETUNE = {"finetune.unfrozen_blocks": 2, "finetune.learning_rate": 3e-4}
HISTOLOGY = {"model.image_size": 192, "augment.copies": 8, "augment.rotation": 0.5}
# 60 slices a class validate in place of a whole fold, so that four folds less those train.
BRAIN = {
    "split.protocol": "official",
    "split.validation_per_class": 60,
    "training.label_smoothing": 0.05,
    "augment.vertical_flip": False,
    "augment.rotation": 0.05,
    "augment.copies": 4,
    "finetune.epochs": 6,
    "finetune.patience": 6,
    "finetune.learning_rate": 3e-4,
}
XRAY = {"augment.horizontal_flip": False, **UPRIGHT, "split.validation_per_class": 150}
FOLDS = {"split.folds": 5, "@folds": [0, 1, 2, 3, 4]}
EXPERIMENTS = {
    "kvasir-group": Experiment("Kvasir-SEG, near-duplicates kept together", "kvasir-seg", "Kvasir-SEG"),
    "kvasir-fold2": Experiment(
        "Kvasir-SEG, a test fold that no setting was chosen with", "kvasir-seg", "Kvasir-SEG", {"split.test_fold": 2}
    ),
    "augment-cached": Experiment(
        "Kvasir-SEG at 64 px, four cached copies of each crop",
        "kvasir-seg",
        "Kvasir-SEG",
        {**SMALL, "augment.copies": 4},
    ),
    "augment-online": Experiment(
        "Kvasir-SEG at 64 px, augmented anew at every epoch", "kvasir-seg", "Kvasir-SEG", {**SMALL, "augment.copies": 0}
    ),
    "cvc-random": Experiment(
        "CVC-ClinicDB, frames drawn singly", "cvc-clinicdb", "cvc-clinicdb", {"split.protocol": "random", **CVC}
    ),
    "cvc-group": Experiment(
        "CVC-ClinicDB, by video sequence", "cvc-clinicdb", "cvc-clinicdb", {"split.protocol": "group", **CVC}
    ),
    "external-polyps": Experiment(
        "Trained on Kvasir-SEG, tested on all of CVC-ClinicDB",
        "kvasir-seg",
        "Kvasir-SEG",
        {"crop.positives_per_lesion": 3, "crop.negatives_per_frame": 5, "augment.copies": 4, **FINETUNE},
        "external",
        ("cvc-clinicdb", "cvc-clinicdb"),
    ),
    "chest-ct": Experiment(
        "Lung CT, 4 classes, official test, duplicates left out",
        "chest-ct",
        "chest-ct",
        {
            "model.image_size": 160,
            "split.drop_duplicates": True,
            "augment.copies": 8,
            **UPRIGHT,
            **FINETUNE,
            "finetune.epochs": 12,
            "finetune.patience": 6,
        },
    ),
    "chest-xray": Experiment(
        "Chest X-ray, official test, 150 images a class validate",
        "chest-xray",
        "chest_xray",
        {"model.image_size": 128, "augment.copies": 2, **XRAY, **FINETUNE, "finetune.epochs": 5},
    ),
    "pneumoniamnist": Experiment(
        "PneumoniaMNIST at 28 pixels, official split",
        "pneumoniamnist",
        "pneumoniamnist.npz",
        {"model.image_size": 64, "augment.copies": 4, "augment.horizontal_flip": False, **UPRIGHT, **FINETUNE},
        note="Published AUC and accuracy (Yang et al., MedMNIST v2, Scientific Data 10:41, 2023): ResNet-18 at 28 px "
        "0.944 and 0.854, ResNet-50 at 224 pixels 0.962 and 0.884, Google AutoML Vision 0.991 and 0.946. Their "
        "threshold is 0.5; here it is chosen on validation, whose share of pneumonia is larger than the test's.",
    ),
    "blockwise-lc25000": Experiment(
        "LC25000, five classes, folds by source tile",
        "lc25000",
        "lc25000",
        {**HISTOLOGY, **FOLDS, "@blocks": [2], "finetune.epochs": 8, "finetune.learning_rate": 3e-4},
        "blockwise",
    ),
    "blockwise-brain": Experiment(
        "Brain tumours, three classes, the author's folds: every depth, small slices",
        "brain-tumor-cheng",
        "brain-tumor-cheng",
        {"model.image_size": 96, **BRAIN, **FOLDS, "@blocks": [1, 2, 3, 4, 5]},
        "blockwise",
    ),
    "leakage-cvc": Experiment(
        "CVC-ClinicDB: frames drawn singly against sequences",
        "cvc-clinicdb",
        "cvc-clinicdb",
        {"model.image_size": 96},
        "leakage",
    ),
    "leakage-lc25000": Experiment(
        "LC25000: tiles drawn singly against source tiles", "lc25000", "lc25000", {"model.image_size": 160}, "leakage"
    ),
    "leakage-brain": Experiment(
        "Brain tumours: slices drawn singly against the author's folds",
        "brain-tumor-cheng",
        "brain-tumor-cheng",
        {"model.image_size": 128, **UPRIGHT, "@protocols": ["random", "official"]},
        "leakage",
    ),
    "variants-xray": Experiment(
        "Chest X-ray: the networks compared, official test",
        "chest-xray",
        "chest_xray",
        {"model.image_size": 96, "split.protocol": "official", **XRAY},
        "variants",
    ),
}


def main(
    data: Annotated[Path | None, Option(help="folder with Kvasir-SEG/, cvc-clinicdb/, ...")] = None,
    weights: Annotated[Path | None, Option(help="ImageNet weights of MobileNetV2 (width 1.0) without its top")] = None,
    only: Annotated[list[str] | None, Option(help="an experiment to run; without it all that are missing")] = None,
    cold: Annotated[str | None, Option(help="an experiment of this clone whose finetune stage to time")] = None,
) -> None:
    """Run what is missing, where data and weights are given, and write the pages."""
    unknown = {*(only or ()), *((cold,) if cold else ())} - EXPERIMENTS.keys()
    if unknown:
        raise InputError(f"{sorted(unknown)[0]}: no such experiment; there are {', '.join(EXPERIMENTS)}")
    if BEGIN not in README.read_text():
        raise InputError(f"{README}: the line {BEGIN!r} is missing; the table goes below it")
    if (data is None) != (weights is None):
        raise InputError("give both --data and --weights, or neither")
    if data is not None:
        for name in progress(only or list(EXPERIMENTS), desc="experiments", unit="run"):
            if not is_there(name):
                run_one(name, data, weights)
    there = [name for name in EXPERIMENTS if is_there(name)]
    if cold and cold not in there:
        raise InputError(f"{cold}: not run in this clone; --only {cold} with --data and --weights runs it")
    if cold:
        note_seconds(cold_key(cold), cold_seconds(cold))
    if not there:
        raise InputError("no experiment of this name is here; give --data and --weights to run them")
    written = sections(PAGE.read_text()) if PAGE.exists() else {}
    with whole_file(PAGE) as temporary:
        temporary.write_text("\n".join(page(there, written)))
    before, rest = README.read_text().split(BEGIN)
    old, after = rest.split(END)
    with whole_file(README) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n" + "\n".join(systems(there, old.splitlines())) + f"\n{END}{after}")


def run_one(name: str, data: Path, weights: Path) -> None:
    """Run one experiment and note how long it took."""
    experiment, root = EXPERIMENTS[name], Path.cwd()
    started = time.perf_counter()
    subprocess.run(experiment.command(name, data, weights), check=True, cwd=root / experiment.folder)
    note_seconds(name, time.perf_counter() - started)


def note_seconds(key: str, seconds: float) -> None:
    """Keep a time beside the others."""
    before = read_json(SECONDS) if SECONDS.exists() else {}
    write_json(SECONDS, before | {key: round(seconds)})


def cold_key(name: str) -> str:
    """What the time of `cold_seconds` is kept under."""
    return f"{name}, finetune from a cold cache"


def cold_seconds(name: str, stage: str = "finetune") -> float:
    """Seconds that a user waits for one stage of an experiment in a fresh clone: DVC, imports, no cached activation.

    Raises RuntimeError when the stage does not give the metrics that the experiment has.
    """

    def call(*words: str) -> None:
        subprocess.run(words, check=True, cwd=clone)

    with tempfile.TemporaryDirectory() as clone:
        root = Path.cwd()
        call("git", "clone", "--quiet", "--no-checkout", root.as_posix(), ".")
        call("git", "fetch", "--quiet", "origin", reference(name))
        call("git", "checkout", "--quiet", "FETCH_HEAD")
        call("dvc", "config", "--local", "cache.dir", (root / ".dvc/cache").as_posix())
        call("dvc", "checkout", "--quiet")
        started = time.perf_counter()
        call("dvc", "repro", "--single-item", "--force", stage)
        seconds = time.perf_counter() - started
        if read_json(Path(clone, "metrics", f"{stage}.json")) != metrics_of(name, stage):
            raise RuntimeError(f"{stage} of {name} gave other figures than in the experiment")
    return seconds


def read(name: str, path: str, mode: str = "r") -> str | bytes:
    """A file that an experiment wrote, as text, or as bytes in mode rb."""
    return dvc.api.read((EXPERIMENTS[name].folder / path).as_posix(), rev=name, mode=mode)


def is_there(name: str) -> bool:
    """Whether the experiment was run, in this repository."""
    try:
        read(name, "table.md" if EXPERIMENTS[name].study else "metrics/evaluate.json")
    except (RevError, FileNotFoundError):
        return False
    return True


def sections(text: str) -> dict[str, str]:
    """What docs/figures.md says now of each experiment, by its name."""
    parts = text.split("\n## ")[1:]
    return {part.split(":")[0]: f"## {part}".rstrip("\n") for part in parts}


def page(there: list[str], written: dict[str, str]) -> list[str]:
    """docs/figures.md: every experiment with its command, its tables and its run time.

    there: experiments of this clone, described anew. written: what the page said of the others, which stays.
    """
    lines = [
        "# Measured figures",
        "",
        "Written by `python -m benchmarks.figures`. [95 % interval, bootstrap over groups].",
        "DATA is `../shared/data`, WEIGHTS the ImageNet weights of MobileNetV2 without its top.",
        "",
    ]
    for name in EXPERIMENTS:
        if name in there:
            lines += [*section(name), ""]
        elif name in written:
            lines += [written[name], ""]
    return lines


def section(name: str) -> list[str]:
    """One experiment: command, run time, commit, tables, note."""
    experiment, seconds = EXPERIMENTS[name], read_json(SECONDS) if SECONDS.exists() else {}
    folder = f"cd {experiment.folder} && " if experiment.study else ""
    took = f"; {seconds[name] / 60:.0f} min on two cores" if name in seconds else ""
    if cold_key(name) in seconds:
        took += f", the finetune stage from a cold cache {seconds[cold_key(name)]} s"
    lines = [
        f"## {name}: {experiment.title}",
        "",
        f"`{folder}{shlex.join(experiment.command(name, 'DATA', 'WEIGHTS'))}` (on commit {commit_of(name)}{took})",
        "",
    ]
    lines += study_page(name) if experiment.study else pipeline_page(name)
    return [*lines, "", experiment.note] if experiment.note else lines


def commit_of(name: str) -> str:
    """The commit that an experiment ran on, short: DVC keeps it in the name of the experiment's reference."""
    *_, start, rest, _ = reference(name).split("/")
    return f"{start}{rest}"[:7]


def reference(name: str) -> str:
    """The Git reference of an experiment: refs/exps/, the commit it ran on, its name."""
    command = ["git", "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]


def study_page(name: str) -> list[str]:
    """The table of a study, and its picture beside the page."""
    picture = PAGE.parent / f"{name}.png"
    with whole_file(picture) as temporary:
        temporary.write_bytes(read(name, "figure.png", mode="rb"))
    return [*read(name, "table.md").splitlines()[2:], "", f"![{EXPERIMENTS[name].title}]({picture.name})"]


def pipeline_page(name: str) -> list[str]:
    """The tables of one run of the pipeline: models, calibration, detection, explanation."""
    evaluated = metrics_of(name, "evaluate")
    lines = [
        f"{protocol(evaluated)}; {evaluated['crops']} test crops of {evaluated['groups']} groups.",
        "",
        "| | validation accuracy | test accuracy | test AUC | balanced accuracy | F1 | calibration error | "
        "error at 90 % coverage |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model in (*MODELS, "ensemble", "control_mean_colour", "control_colour_histogram"):
        if model not in evaluated:
            continue
        validation = f"{metrics_of(name, model)['validation']['accuracy']:.3f}" if model in MODELS else ""
        columns = ("accuracy", "roc_auc", "balanced_accuracy", "f1", "ece", "error_at_90_coverage")
        cells = [interval(evaluated[model][key]) if key in evaluated[model] else "" for key in columns]
        lines.append(f"| {' | '.join([model.replace('_', ' '), validation, *cells])} |")
    if evaluated["warning"]:
        lines += ["", f"Warning: {evaluated['warning']}"]
    gain = evaluated["finetune"]["aurc_gain"]
    lines += ["", f"Risk-coverage, finetune: area below that of a random order by {interval(gain)}."]
    detected, explained = metrics_of(name, "detect"), metrics_of(name, "explain")
    if "operating" in detected:
        operating = detected["operating"]
        lines += [
            "",
            f"Detection on {detected['frames']} test frames, threshold from validation frames: recall "
            f"{interval(operating['recall'])} at {interval(operating['false_positives_per_frame'])} false positives a "
            "frame.",
        ]
    return lines + explanation(explained)


def explanation(explained: dict) -> list[str]:
    """What metrics/explain.json says of the heat inside lesions, where there are masks."""
    if "share_inside" not in explained.get("gradcam", {}):
        return []
    cam = explained["gradcam"]
    return [
        "",
        f"Grad-CAM on {explained['lesions']} test lesions: share of heat inside the lesion "
        f"{interval(cam['share_inside'])}, of a random map's {interval(cam['random_share_inside'])}, of the same "
        f"network's with random weights {interval(cam['randomised_share_inside'])}.",
    ]


def metrics_of(name: str, stage: str) -> dict:
    """metrics/<stage>.json of an experiment."""
    return json.loads(read(name, f"metrics/{stage}.json"))


def table_of(name: str) -> pd.DataFrame:
    """table.csv of a study."""
    from io import StringIO

    return pd.read_csv(StringIO(read(name, "table.csv")))


def protocol(metrics: dict) -> str:
    """Protocol, whether groups are kept apart, seed."""
    disjoint = "group-disjoint" if metrics["group_disjoint"] else "**not group-disjoint**"
    return f"Protocol {metrics['protocol']} ({disjoint}), seed {metrics['seed']}"


def interval(figure: dict[str, float]) -> str:
    """A value with its 95 % interval."""
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def test_figure(experiment: str, metric: str) -> Callable[[], str]:
    """A test figure of the finetune model of a pipeline run."""
    return lambda: interval(metrics_of(experiment, "evaluate")["finetune"][metric])


def validation_figure(experiment: str, metric: str) -> Callable[[], str]:
    """A validation figure of the finetune model of a pipeline run."""
    return lambda: f"{metrics_of(experiment, 'finetune')['validation'][metric]:.3f}"


def seconds_figure(experiment: str) -> Callable[[], str]:
    """Seconds of the finetune stage from a cold cache."""
    return lambda: str(read_json(SECONDS).get(cold_key(experiment), "not timed"))


def of_chosen_depth(experiment: str, metric: str) -> Callable[[], str]:
    """A test figure of a blockwise study at the depth that validation chose, mean and deviation of folds."""

    def figure() -> str:
        table = table_of(experiment)
        row = table.loc[table["val_accuracy_mean"].idxmax()]
        return f"{row[f'{metric}_mean']:.3f} ± {row[f'{metric}_sd']:.3f} ({row['blocks']:.0f} blocks)"

    return figure


def of_external(experiment: str, metric: str) -> Callable[[], str]:
    """A figure of the finetune model on the external data set."""

    def figure() -> str:
        table = table_of(experiment)
        row = table[(table["model"] == "finetune") & (table["test"] == "external")].iloc[0]
        return f"{row[metric]:.3f} [{row[f'{metric}_low']:.3f}, {row[f'{metric}_high']:.3f}]"

    return figure


@dataclass(frozen=True)
class Target:
    """A line of the README's table. published: what the paper of the system says; wanted: what is to be reached."""

    system: str
    figure: str
    published: str
    wanted: str
    experiment: str
    ours: Callable[[], str]


TARGETS = [
    Target("polyps, CVC-ClinicDB, frames drawn singly", "validation accuracy", "above 0.98", "0.985", "cvc-random",
           validation_figure("cvc-random", "accuracy")),
    Target("the same: finetune stage, cold cache, two cores", "seconds", "120 (Titan Xp)", "60", "cvc-random",
           seconds_figure("cvc-random")),
    Target("polyps, CVC-ClinicDB, by sequence", "test AUC", "", "0.970", "cvc-group",
           test_figure("cvc-group", "roc_auc")),
    Target("polyps, Kvasir-SEG, by near-duplicates", "test accuracy", "", "0.960", "kvasir-group",
           test_figure("kvasir-group", "accuracy")),
    Target("the same, a fold that chose nothing", "test accuracy", "", "0.960", "kvasir-fold2",
           test_figure("kvasir-fold2", "accuracy")),
    Target("polyps, trained on Kvasir-SEG, all of CVC-ClinicDB", "AUC", "", "0.970", "external-polyps",
           of_external("external-polyps", "roc_auc")),
    Target("histology, LC25000 (5 classes), by source tile", "balanced accuracy", "0.977 (NCT, accuracy)", "0.970",
           "blockwise-lc25000", of_chosen_depth("blockwise-lc25000", "balanced_accuracy")),
    Target("brain tumours (3 classes), author's folds", "accuracy", "0.948 (VGG19)", "0.948", "blockwise-brain",
           of_chosen_depth("blockwise-brain", "accuracy")),
    Target("lung CT (4 classes), official test, no duplicates", "test accuracy", "0.47 (IQ-OTH, validation)", "0.80",
           "chest-ct", test_figure("chest-ct", "accuracy")),
    Target("chest X-ray, official test", "test accuracy", "0.905", "0.92", "chest-xray",
           test_figure("chest-xray", "accuracy")),
    Target("chest X-ray, official test", "test F1", "0.928", "0.938", "chest-xray",
           test_figure("chest-xray", "f1")),
    Target("polyps, Kvasir-SEG, 64 px, 4 cached copies a crop", "test accuracy", "", "", "augment-cached",
           test_figure("augment-cached", "accuracy")),
    Target("the same, augmented anew at every epoch", "test accuracy", "", "", "augment-online",
           test_figure("augment-online", "accuracy")),
    Target("PneumoniaMNIST, official split", "test accuracy", "0.854 to 0.946", "0.90", "pneumoniamnist",
           test_figure("pneumoniamnist", "accuracy")),
    Target("PneumoniaMNIST, official split", "test AUC", "0.944 to 0.991", "0.970", "pneumoniamnist",
           test_figure("pneumoniamnist", "roc_auc")),
]  # fmt: skip


def systems(there: list[str], written: list[str]) -> list[str]:
    """The table of systems in Markdown: what was published, what was wanted, what was reached.

    written: the lines of the table as it is, where figures of experiments that are not in this clone are.
    """
    cells = [[cell.strip() for cell in line.split("|")] for line in written]
    before = {(row[1], row[2], row[-2]): row[-3] for row in cells if len(row) > 5}
    lines = [
        "| system and protocol | figure | published | wanted | reached | experiment |",
        "|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        name = f"`{target.experiment}`"
        reached = (
            target.ours() if target.experiment in there else before.get((target.system, target.figure, name), "not run")
        )
        cell = (target.system, target.figure, target.published, target.wanted, reached, name)
        lines.append(f"| {' | '.join(cell)} |")
    return lines


def _yaml(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool | list) else str(value)


if __name__ == "__main__":
    run(main, __doc__, stage=False)
