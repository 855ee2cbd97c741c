"""figures: run the pipeline and its studies on the real data sets and write down what they measured.

    python -m benchmarks.figures --data FOLDER --weights FILE    runs the experiments that are not there yet
    python -m benchmarks.figures --data ... --only cvc-random    only this one (may be given several times)
    python -m benchmarks.figures --cold cvc-random               times its finetune stage five times in a row, nothing
                                                                 computed before
    python -m benchmarks.figures --dense kvasir-group            compares its dense maps with windows cut out one by one
    python -m benchmarks.figures                                 only writes the pages of those that are

Each experiment is one `dvc exp run --temp`, of the pipeline or of a study; the pages say its command, protocol, seed,
spread, run time on this machine and the commit it ran on. Experiments live in one clone only: what the pages say of
those that are not in this one stays as it is.

writes  docs/figures.md, docs/*.png, and the table of systems between the markers of README.md
"""

import json
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Annotated

import dvc.api
import pandas as pd
import yaml
from dvc.scm import RevError
from typer import Option

from benchmarks.experiments import EXPERIMENTS, MEANS
from benchmarks.means import TEST_FIGURES, chosen, figures_of_means
from lesionlab.data.cards import grouped_by, read_card
from lesionlab.errors import InputError
from lesionlab.evaluation.subgroups import FEW_GROUPS
from lesionlab.evaluation.table import KEPT_APART, interval, kept_apart
from lesionlab.explanation.pictures import METHOD_NAMES
from lesionlab.files import read_json, whole_file, write_json
from lesionlab.progress import progress
from lesionlab.stage import run
from lesionlab.studies.blockwise import CHOICE, choose_depths
from lesionlab.studies.predictions import Predictions, point_metrics, read_predictions
from lesionlab.studies.tables import markdown_table, mean_sd

README, PAGE = Path("README.md"), Path("docs/figures.md")
SECONDS, COLD, DENSE = (Path(f"benchmarks/{name}.json") for name in ("seconds", "cold", "dense"))
COLD_RUNS = 5
BEGIN, END = "<!-- figures: python -m benchmarks.figures -->", "<!-- end of figures -->"
MODELS = ("baseline", "transfer", "finetune")
NO_PATIENTS = {"brain-tumor-cheng"}  # the copy's table names none, which runs before fbde86c did not record
PLACEHOLDERS = {"mobilenetv2": "WEIGHTS", "mobilenet": "MOBILENET"}  # in the pages' commands
WEIGHT_FILES = {  # what the pages' figures were measured with, by SHA-256
    "mobilenetv2_1.0.weights.h5": "9c1b81fdf493faeed07f249980bb7ab949d6662deba6d36234991525df6fc449",
    "mobilenet_1.0.weights.h5": "05087685359a7cdc778f8f480c0c56932ebb3e48ac67f4228bb168d1d9fb86cf",
}


def main(
    data: Annotated[
        Path | None, Option(help=f"folder with {', '.join(sorted({each.data for each in EXPERIMENTS.values()}))}")
    ] = None,
    weights: Annotated[Path | None, Option(help="ImageNet weights of MobileNetV2 (width 1.0) without its top")] = None,
    mobilenet: Annotated[
        Path | None, Option(help="those of MobileNet; without them mobilenet_1.0.weights.h5 beside")
    ] = None,
    only: Annotated[list[str] | None, Option(help="an experiment to run; without it all that are missing")] = None,
    cold: Annotated[str | None, Option(help="an experiment of this clone whose finetune stage to time")] = None,
    dense: Annotated[str | None, Option(help="one whose dense detection to compare with cut-out windows")] = None,
    frames: Annotated[int | None, Option(help="at most so many frames of each subset in --dense")] = None,
) -> None:
    """Run what is missing, where data and weights are given, and write the pages."""
    unknown = {*(only or ()), *filter(None, (cold, dense))} - EXPERIMENTS.keys()
    if unknown:
        raise InputError(f"{sorted(unknown)[0]}: no such experiment; there are {', '.join(EXPERIMENTS)}")
    if BEGIN not in README.read_text():
        raise InputError(f"{README}: the line {BEGIN!r} is missing; the table goes below it")
    if (data is None) != (weights is None):
        raise InputError("give both --data and --weights, or neither")
    if data is not None:
        files = {"mobilenetv2": weights, "mobilenet": mobilenet or weights.with_name("mobilenet_1.0.weights.h5")}
        missing = [name for name in only or EXPERIMENTS if not is_there(name)]
        require_files(missing, data, files)
        for name in progress(missing, desc="experiments", unit="run"):
            run_one(name, data, files)
    there = [name for name in EXPERIMENTS if is_there(name)]
    there += [name for name, mean in MEANS.items() if set(mean.members) <= set(there)]
    for name in filter(None, (cold, dense)):
        if name not in there:
            raise InputError(f"{name}: not run in this clone; --only {name} with --data and --weights runs it")
    if dense:
        compared = {"commit": commit_of(dense), **dense_against_windows(dense, frames)}
        write_json(DENSE, read_or_empty(DENSE) | {dense: compared})  # read now: another may have written
    if cold:
        runs = [round(cold_seconds(cold), 1) for _ in progress(range(COLD_RUNS), desc=cold, unit="run")]
        write_json(COLD, read_or_empty(COLD) | {cold: {"commit": commit_of(cold), "seconds": runs}})
    if not there:
        raise InputError("no experiment of this name is here; give --data and --weights to run them")
    written = sections(PAGE.read_text()) if PAGE.exists() else {}
    lines = page(there, written)
    with whole_file(PAGE) as temporary:
        temporary.write_text("\n".join(lines))
    before, rest = README.read_text().split(BEGIN)
    old, after = rest.split(END)
    table = systems(there, old.splitlines(), sections("\n".join(lines)))
    with whole_file(README) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n" + "\n".join(table) + f"\n{END}{after}")


def require_files(names: list[str], data: Path, weights: dict[str, Path]) -> None:
    """Raise InputError, before hours of work, when an experiment needs data or weights that are not there."""
    for name in names:
        experiment = EXPERIMENTS[name]
        folders = [experiment.data, *(experiment.external or ())[1:]]
        for path in (*(data / folder for folder in folders), weights[experiment.backbone]):
            if not path.exists():
                raise InputError(f"{path}: not found, and {name} needs it; add it, or run others with --only")


def run_one(name: str, data: Path, weights: dict[str, Path]) -> None:
    """Run one experiment and note how long it took."""
    experiment, root = EXPERIMENTS[name], Path.cwd()
    if reference(name):  # of other settings
        subprocess.run(["dvc", "exp", "remove", name], check=True)
    started = time.perf_counter()
    subprocess.run(experiment.command(name, data, weights), check=True, cwd=root / experiment.folder)
    note_seconds(name, time.perf_counter() - started)


def note_seconds(key: str, seconds: float) -> None:
    """Keep a time beside the others."""
    write_json(SECONDS, read_or_empty(SECONDS) | {key: round(seconds)})


def read_or_empty(path: Path) -> dict:
    """What a JSON file holds; nothing where it is not yet written."""
    return read_json(path) if path.exists() else {}


def of_this_run(path: Path, name: str) -> dict:
    """What a file of measurements holds of an experiment of this clone as it is now; nothing after a run anew."""
    kept = read_or_empty(path).get(name, {})
    return kept if kept.get("commit") == commit_of(name) else {}


def cold_runs(name: str) -> list[float]:
    """What `--cold` found for an experiment."""
    return of_this_run(COLD, name).get("seconds", [])


def median_and_range(values: list[float]) -> str:
    """The median, least and most of some runs."""
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def cold_seconds(name: str, stage: str = "finetune") -> float:
    """Seconds of the process of one stage of an experiment in a fresh clone: imports, no cached activation.

    Raises RuntimeError when the stage does not give the metrics that the experiment has.
    """
    with clone_of(name) as clone:
        command = yaml.safe_load((clone / "dvc.lock").read_text())["stages"][stage]["cmd"]
        started = time.perf_counter()
        subprocess.run(shlex.split(command), check=True, cwd=clone)
        seconds = time.perf_counter() - started
        if read_json(clone / "metrics" / f"{stage}.json") != metrics_of(name, stage):
            raise RuntimeError(f"{stage} of {name} gave other figures than in the experiment")
    return seconds


def dense_against_windows(name: str, frames: int | None) -> dict:
    """What benchmarks.detection says of the finetune model of an experiment, on at most `frames` frames a subset."""
    with clone_of(name) as clone:
        params = yaml.safe_load((clone / "params.yaml").read_text())
        params["detect"]["max_frames"] = frames or params["detect"]["max_frames"]
        (clone / "params.yaml").write_text(yaml.safe_dump(params))
        command = ["python", "-m", "benchmarks.detection", "--model", "models/finetune", "--out", "dense.json"]
        subprocess.run(command, check=True, cwd=clone)
        return read_json(clone / "dense.json")


@contextmanager
def clone_of(name: str) -> Iterator[Path]:
    """A clone with the code that an experiment ran on, all that it made, and no cache of activations."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path.cwd()
        cache = subprocess.run(["dvc", "cache", "dir"], check=True, capture_output=True, text=True).stdout.strip()
        for command in (
            f"git clone --quiet --no-checkout {shlex.quote(root.as_posix())} .",
            f"git fetch --quiet origin {reference(name)}",
            "git checkout --quiet FETCH_HEAD",
            f"dvc config --local cache.dir {shlex.quote((root / cache).as_posix())}",
            "dvc checkout --quiet dvc.yaml",
        ):
            subprocess.run(shlex.split(command), check=True, cwd=folder)
        yield Path(folder)


def read(name: str, path: str, mode: str = "r") -> str | bytes:
    """A file that an experiment wrote, as text, or as bytes in mode rb."""
    return dvc.api.read((EXPERIMENTS[name].folder / path).as_posix(), rev=name, mode=mode)


def is_there(name: str) -> bool:
    """Whether the experiment was run in this repository, with the settings that EXPERIMENTS has now, to its end."""
    experiment = EXPERIMENTS[name]
    try:
        params = yaml.safe_load(read(name, "params.yaml"))
        read(name, "table.md" if experiment.study else "metrics/evaluate.json")
    except (RevError, FileNotFoundError):
        return False
    same = True
    for key, value in experiment.settings.items():
        place = params if key.startswith("@") or not experiment.study else params["set"]
        for part in key.lstrip("@").split("."):
            place = place.get(part, {})
        same &= place == value
    return same


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
        "DATA is a folder of reduced copies of the releases, WEIGHTS a file of MobileNetV2's ImageNet weights without",
        "its top, MOBILENET one of MobileNet's. Neither is passed on: README.md says how the copies differ from",
        "the releases. The weights were de-quantised from releases of 8 bits, so that those which `weights: imagenet`",
        "downloads give other figures; their SHA-256 are",
        ",\n".join(f"`{file}` {digest}" for file, digest in WEIGHT_FILES.items()) + ".",
        "Where a section says that validation accuracy chooses a number of unfrozen blocks, it is that of all folds",
        "together, of crops that test in other folds; later runs, and README.md's rows of blockwise-brain-224 and",
        "-mobilenet, choose in each fold by its own. mean-brain chooses the number of networks in the older way.",
        "The copy of the brain tumours names no patient: groups are runs of slices of one class that are alike, and",
        "that no patient of the release lies in two of its folds rests on their author's word.",
        "",
    ]
    for name in (*EXPERIMENTS, *MEANS):
        if name in there:
            text = "\n".join(mean_section(name) if name in MEANS else section(name))
        elif name in written:
            text = written[name]
        else:
            continue
        if name in EXPERIMENTS and EXPERIMENTS[name].dataset in NO_PATIENTS:
            text = text.replace(f"({KEPT_APART['card']})", f"({KEPT_APART['runs']})")
        lines += [text, ""]
    return lines


def protocol_on(pages: dict[str, str], name: str) -> str:
    """Protocol, and who is kept apart, as the section of an experiment says it; of a mean, as its first member's does.

    A study of the leak compares protocols and has none.
    """
    if name in MEANS:
        name = next(iter(MEANS[name].members))
    found = re.findall(r"[Pp]rotocol (\w+ \([^)]*\))", pages.get(name, ""))
    return found[-1] if found else ""  # of two, internal and external, the external


def section(name: str) -> list[str]:
    """One experiment: command, run time, commit, tables, note."""
    experiment, seconds = EXPERIMENTS[name], read_or_empty(SECONDS)
    folder = f"cd {experiment.folder} && " if experiment.study else ""
    took = f"; {seconds[name] / 60:.0f} min on two cores" if name in seconds else ""
    if cold := cold_runs(name):
        took += f", the finetune stage from a cold cache {median_and_range(cold)} s of {len(cold)} runs"
    lines = [
        f"## {name}: {experiment.title}",
        "",
        f"`{folder}{shlex.join(experiment.command(name, 'DATA', PLACEHOLDERS))}` (on commit {commit_of(name)}{took})",
        "",
    ]
    lines += study_page(name) if experiment.study else pipeline_page(name)
    return [*lines, "", experiment.note] if experiment.note else lines


def mean_section(name: str) -> list[str]:
    """One mean of networks: whose, and a row for each of them, for the first two, the first three, ..."""
    mean, cells, seconds = MEANS[name], means_of(name), read_or_empty(SECONDS)
    minutes = sum(seconds.get(member, 0) for member in mean.members) / 60
    shown = pd.DataFrame({"networks": cells["networks"].unique()})
    for figure in ("val_accuracy", *TEST_FIGURES):
        values = [mean_sd(folds) for _, folds in cells.groupby("networks", sort=False)[figure]]
        shown[figure.replace("_", " ")] = values
    best = chosen(cells, mean.declared)
    how = "Declared beforehand:" if mean.declared else "Each fold's own validation accuracy chooses"
    return [
        f"## {name}: {mean.title}",
        "",
        f"`python -m benchmarks.figures`, after the experiments of its rows, "
        f"{' and '.join(f'{blocks}' for blocks in mean.members.values())} blocks unfrozen (on commits "
        f"{', '.join(map(commit_of, mean.members))}; {minutes:.0f} min together)",
        "",
        *markdown_table(shown),
        "",
        f"Mean ± standard deviation of {len(best)} test folds, split as its members' are. {how} "
        f"{' or '.join(best['networks'].unique())}: test accuracy {mean_sd(best['accuracy'])}.",
        *(["", mean.note] if mean.note else []),
    ]


def means_of(name: str) -> pd.DataFrame:
    """What `figures_of_means` finds for one of MEANS."""
    mean = MEANS[name]
    return figures_of_means({member: predictions_of(member, blocks) for member, blocks in mean.members.items()})


def predictions_of(name: str, blocks: int) -> list[Predictions]:
    """What the networks of a blockwise study said at one depth, a fold an item."""
    params = yaml.safe_load(read(name, "params.yaml"))
    sensitivity = params["set"].get("training", {}).get("sensitivity")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.csv"
        found = []
        for fold in params["folds"]:
            path.write_text(read(name, f"predictions/{blocks}-{fold}.csv"))
            found.append(read_predictions(path, sensitivity=sensitivity))
    return found


def commit_of(name: str) -> str:
    """The commit that an experiment ran on, short: DVC keeps it in the name of the experiment's reference."""
    *_, start, rest, _ = reference(name).split("/")
    return f"{start}{rest}"[:7]


def reference(name: str) -> str | None:
    """The Git reference of an experiment of this clone: refs/exps/, the commit it ran on, its name."""
    command = ["git", "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return found[-1] if found else None


def study_page(name: str) -> list[str]:
    """The table of a study, and its picture beside the page."""
    picture = PAGE.parent / f"{name}.png"
    with whole_file(picture) as temporary:
        temporary.write_bytes(read(name, "figure.png", mode="rb"))
    lines = read(name, "table.md").splitlines()[2:]
    together = any(line.startswith("Validation accuracy chooses") for line in lines)  # as of several before 8380d6a
    if together and len(yaml.safe_load(read(name, "params.yaml"))["folds"]) > 1:
        lines.append(f"Each fold's own validation accuracy chooses: {of_chosen_depth(name, 'accuracy')()}.")
    return [*lines, "", f"![{EXPERIMENTS[name].title}]({picture.name})"]


def pipeline_page(name: str) -> list[str]:
    """The tables of one run of the pipeline: models, calibration, detection, explanation."""
    evaluated = metrics_of(name, "evaluate")
    lines = [
        f"{protocol(evaluated, EXPERIMENTS[name].dataset)}; {evaluated['crops']} test crops of {evaluated['groups']} "
        f"groups{rough(evaluated)}.",
        "",
        "| | validation accuracy | test accuracy | test AUC | balanced accuracy | precision | recall | F1 | "
        "calibration error | error at 90 % coverage |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model in (*MODELS, "ensemble", "control_mean_colour", "control_colour_histogram"):
        if model not in evaluated:
            continue
        on_validation = evaluated.get("validation", {})  # not known of experiments before 6d9504d
        validation = interval(on_validation[model]["accuracy"]) if model in on_validation else ""
        columns = ("accuracy", "roc_auc", "balanced_accuracy", "precision", "recall", "f1", "ece")
        cells = [
            interval(evaluated[model][key]) if key in evaluated[model] else ""
            for key in (*columns, "error_at_90_coverage")
        ]
        lines.append(f"| {' | '.join([model.replace('_', ' '), validation, *cells])} |")
    if evaluated["warning"]:
        lines += ["", f"Warning: {evaluated['warning']}"]
    finetune = evaluated["finetune"]
    gain, before, after = (finetune.get(key) for key in ("aurc_gain", "ece_before_scaling", "ece"))
    lines += ["", f"Calibration error, finetune: {interval(before)} at temperature 1, {interval(after)} after scaling."]
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
    return lines + dense_table(of_this_run(DENSE, name)) + explanation(explained)


def dense_table(ways: dict) -> list[str]:
    """Dense maps beside windows that were cut out, where that was measured."""
    if not ways:
        return []
    lines = ["", "| windows scored | threshold | recall | precision | false positives a frame | recall at 1 |"]
    lines += ["|---|---|---|---|---|---|"]
    for way, found in ways["ways"].items():
        cells = [interval(found.get(key)) for key in ("recall", "precision", "false_positives_per_frame")]
        lines.append(f"| {way} | {found['threshold']:.3f} | {' | '.join(cells)} | {found['recall_at_rate']:.3f} |")
    return [*lines, "", f"All on the same {ways['frames']} test frames, each at its own validation threshold."]


def explanation(explained: dict) -> list[str]:
    """What metrics/explain.json says of the heat inside lesions, where there are masks."""
    lines = []
    for method, title in METHOD_NAMES.items():
        cam = explained.get(method, {})
        if "share_inside" in cam:
            lines += [
                "",
                f"{title} ({cam['layer']}) on {explained['lesions']} test lesions: share of heat inside the lesion "
                f"{interval(cam['share_inside'])}, {interval(cam.get('times_random'), '.2f')} times a random map's and "
                f"{interval(cam.get('times_randomised'), '.2f')} times that of the same network with random weights.",
            ]
    return lines


def metrics_of(name: str, stage: str) -> dict:
    """metrics/<stage>.json of an experiment."""
    return json.loads(read(name, f"metrics/{stage}.json"))


def table_of(name: str) -> pd.DataFrame:
    """table.csv of a study."""
    return pd.read_csv(StringIO(read(name, "table.csv")))


def protocol(metrics: dict, dataset: str) -> str:
    """Protocol, whether groups are kept apart, seed."""
    # What the card says, for experiments before the key was there.
    apart = kept_apart({"grouped_by": grouped_by(read_card(dataset).readings[0].rule)} | metrics)
    return f"Protocol {metrics['protocol']} ({apart}), seed {metrics['seed']}"


def rough(evaluated: dict) -> str:
    """A remark where a bootstrap over so few groups gives intervals that are rough."""
    return ", rough: few groups" if evaluated["groups"] < FEW_GROUPS else ""


def figure_on_test(experiment: str, metric: str, model: str = "finetune") -> Callable[[], str]:
    """A test figure of a model of a pipeline run."""

    def figure() -> str:
        evaluated = metrics_of(experiment, "evaluate")
        return interval(evaluated[model][metric]) + rough(evaluated)

    return figure


def figure_on_validation(experiment: str, metric: str, model: str = "finetune") -> Callable[[], str]:
    """A validation figure of a model of a pipeline run."""
    return lambda: interval(metrics_of(experiment, "evaluate")["validation"][model][metric])


def cold_figure(experiment: str) -> Callable[[], str]:
    """Seconds of the finetune stage from a cold cache: median, least and most."""
    return lambda: median_and_range(runs) if (runs := cold_runs(experiment)) else "not timed"


def least_and_most(numbers: pd.Series) -> str:
    """`2`, or `0 to 2` where they differ."""
    least, most = numbers.min(), numbers.max()
    return str(least) if least == most else f"{least} to {most}"


def of_chosen_depth(experiment: str, metric: str) -> Callable[[], str]:
    """A test figure of a blockwise study at the depth that each fold's validation chose: mean, deviation of folds."""

    def figure() -> str:
        depths = (0, *yaml.safe_load(read(experiment, "params.yaml"))["blocks"])
        cells = [
            {
                "fold": fold,
                "blocks": blocks,
                CHOICE: point_metrics(predictions.val)["accuracy"],
                metric: point_metrics(predictions.test)[metric],
            }
            for blocks in depths
            for fold, predictions in enumerate(predictions_of(experiment, blocks))
        ]
        best = choose_depths(pd.DataFrame(cells))
        return f"{mean_sd(best[metric])} ({least_and_most(best['blocks'])} blocks)"

    return figure


def of_mean(name: str, metric: str) -> Callable[[], str]:
    """A test figure of the mean of networks, of all or of as many as validation chose: mean and deviation of folds."""

    def figure() -> str:
        declared = MEANS[name].declared
        best = chosen(means_of(name), declared)
        counts = best["networks"].str.count(r"\+") + 1
        return f"{mean_sd(best[metric])} (of {least_and_most(counts)} {'declared' if declared else 'chosen'})"

    return figure


def of_external(experiment: str, metric: str) -> Callable[[], str]:
    """A figure of the finetune model on the external data set."""

    def figure() -> str:
        table = table_of(experiment)
        row = table[(table["model"] == "finetune") & (table["test"] == "external")].iloc[0]
        return f"{row[metric]:.3f} [{row[f'{metric}_low']:.3f}, {row[f'{metric}_high']:.3f}]"

    return figure


def of_ensemble(experiment: str, metric: str) -> Callable[[], str]:
    """A test figure of the mean of a study's members."""

    def figure() -> str:
        row = table_of(experiment).set_index("model").loc["ensemble"]
        if f"{metric}_sd" in row:  # of several folds
            return f"{row[metric]:.3f} ± {row[f'{metric}_sd']:.3f}"
        return f"{row[metric]:.3f} [{row[f'{metric}_low']:.3f}, {row[f'{metric}_high']:.3f}]"

    return figure


def of_leak(experiment: str, metric: str) -> Callable[[], str]:
    """What a study of the leak found: frames drawn singly less groups kept apart, the head alone."""

    def figure() -> str:
        found = json.loads(read(experiment, "headline.json"))
        ends = {"value": "", "low": "_low", "high": "_high"}
        return interval({part: found.get(f"leak_{metric}{end}") for part, end in ends.items()}, "+.3f")

    return figure


@dataclass(frozen=True)
class Target:
    """A line of the README's table. published: what the paper of the system says; wanted: what is to be reached.

    experiment: of EXPERIMENTS or MEANS; or, where no pictures were at hand, the setting that runs the system.
    """

    system: str
    figure: str
    published: str
    wanted: str
    experiment: str
    ours: Callable[[], str]


def not_at_hand() -> str:
    """In place of a figure."""
    return "pictures not at hand"


TARGETS = [
    Target("polyps, CVC-ClinicDB, singly, small CNN", "validation accuracy", "above 0.90", "", "cvc-random",
           figure_on_validation("cvc-random", "accuracy", "baseline")),
    Target("polyps, CVC-ClinicDB, frames drawn singly", "validation accuracy", "above 0.98", "0.985", "cvc-random",
           figure_on_validation("cvc-random", "accuracy")),
    Target("the same: finetune stage, cold cache, two cores", "seconds", "120 (Titan Xp)", "60", "cvc-random",
           cold_figure("cvc-random")),
    Target("polyps, CVC-ClinicDB, by sequence", "test AUC", "", "0.970", "cvc-group",
           figure_on_test("cvc-group", "roc_auc")),
    Target("polyps, Kvasir-SEG, by near-duplicates", "test accuracy", "", "0.960", "kvasir-group",
           figure_on_test("kvasir-group", "accuracy")),
    Target("the same, a fold that chose nothing", "test accuracy", "", "0.960", "kvasir-fold2",
           figure_on_test("kvasir-fold2", "accuracy")),
    Target("polyps, trained on Kvasir-SEG, all of CVC-ClinicDB", "AUC", "", "0.970", "external-polyps",
           of_external("external-polyps", "roc_auc")),
    Target("histology, NCT-CRC-HE-100K (9 classes)", "validation accuracy", "0.977", "", "-S dataset=nct-crc-he",
           not_at_hand),
    Target("the same, tested on CRC-VAL-HE-7K", "accuracy", "0.943 (VGG19), 0.977 to 0.983 (others)", "",
           "-S dataset=nct-crc-he", not_at_hand),
    Target("histology, LC25000 (5 classes), by source tile", "balanced accuracy", "0.977 (NCT, validation)", "0.970",
           "blockwise-lc25000", of_chosen_depth("blockwise-lc25000", "balanced_accuracy")),
    Target("the same, 224 px, twelve epochs", "balanced accuracy", "0.977 (NCT, validation)", "0.970",
           "blockwise-lc25000-224", of_chosen_depth("blockwise-lc25000-224", "balanced_accuracy")),
    Target("the same, the mean of eight views of a tile", "balanced accuracy", "0.977 (NCT, validation)", "0.970",
           "blockwise-lc25000-views", of_chosen_depth("blockwise-lc25000-views", "balanced_accuracy")),
    Target("brain tumours (3 classes), author's folds", "accuracy", "0.948 (VGG19)", "0.948", "blockwise-brain",
           of_chosen_depth("blockwise-brain", "accuracy")),
    Target("the same, 192 px in place of 96", "accuracy", "0.948 (VGG19)", "0.948", "blockwise-brain-192",
           of_chosen_depth("blockwise-brain-192", "accuracy")),
    Target("the same, 256 px, the mean of a slice and its mirror image", "accuracy", "0.948 (VGG19)", "0.948",
           "blockwise-brain-256", of_chosen_depth("blockwise-brain-256", "accuracy")),
    Target("the same, 224 px, stronger augmentation", "accuracy", "0.948 (VGG19)", "0.948", "blockwise-brain-224",
           of_chosen_depth("blockwise-brain-224", "accuracy")),
    Target("the same, ten copies augmented more strongly", "accuracy", "0.948 (VGG19)", "0.948",
           "blockwise-brain-strong", of_chosen_depth("blockwise-brain-strong", "accuracy")),
    Target("the same, 256 px, augmented as at 224 px, slices counted the same", "accuracy", "0.948 (VGG19)", "0.948",
           "blockwise-brain-full", of_chosen_depth("blockwise-brain-full", "accuracy")),
    Target("the same, 224 px, MobileNet", "accuracy", "0.948 (VGG19)", "0.948", "blockwise-brain-mobilenet",
           of_chosen_depth("blockwise-brain-mobilenet", "accuracy")),
    Target("the same, one or both of the two at 224 px, as validation chooses", "accuracy", "0.948 (VGG19)", "0.948",
           "mean-brain", of_mean("mean-brain", "accuracy")),
    Target("the same, the mean of MobileNetV2 and MobileNet", "accuracy", "0.948 (VGG19)", "0.948",
           "mean-brain-networks", of_mean("mean-brain-networks", "accuracy")),
    Target("the same, the mean of 224 and 256 px", "accuracy", "0.948 (VGG19)", "0.948", "mean-brain-sizes",
           of_mean("mean-brain-sizes", "accuracy")),
    Target("the same, 224 px, normalization trained", "accuracy", "0.948 (VGG19)", "0.948",
           "blockwise-brain-normalization", of_chosen_depth("blockwise-brain-normalization", "accuracy")),
    Target("the same, 224 px, the mean of three seeds", "accuracy", "0.948 (VGG19)", "0.948", "ensemble-brain",
           of_ensemble("ensemble-brain", "accuracy")),
    Target("the same, the mean of three seeds, mixup", "accuracy", "0.948 (VGG19)", "0.948", "ensemble-brain-mixup",
           of_ensemble("ensemble-brain-mixup", "accuracy")),
    Target("the same, the mean of three seeds, attention taught by masks", "accuracy", "0.948 (VGG19)", "0.948",
           "ensemble-brain-attention", of_ensemble("ensemble-brain-attention", "accuracy")),
    Target("the same, 224 px, attention taught by masks", "accuracy", "0.948 (VGG19)", "0.948",
           "blockwise-brain-attention", of_chosen_depth("blockwise-brain-attention", "accuracy")),
    Target("brain tumours (4 classes)", "validation accuracy", "0.73", "", "-S dataset=brain-mri-kaggle", not_at_hand),
    Target("lung CT, IQ-OTH/NCCD (3 classes)", "validation accuracy", "0.47", "", "-S dataset=iq-oth-nccd",
           not_at_hand),
    Target("lung CT (4 classes), official test, no duplicates", "test accuracy", "0.47 (IQ-OTH, validation)", "0.80",
           "chest-ct", figure_on_test("chest-ct", "accuracy")),
    Target("chest X-ray, official test", "test accuracy", "0.905", "0.92", "chest-xray",
           figure_on_test("chest-xray", "accuracy")),
    Target("chest X-ray, official test", "test F1", "0.928", "0.938", "chest-xray",
           figure_on_test("chest-xray", "f1")),
    Target("the same, stronger augmentation, ensemble of three", "test accuracy", "0.905", "0.92",
           "chest-xray-strong", figure_on_test("chest-xray-strong", "accuracy", "ensemble")),
    Target("the same, stronger augmentation, ensemble of three", "test F1", "0.928", "0.938",
           "chest-xray-strong", figure_on_test("chest-xray-strong", "f1", "ensemble")),
    Target("the same, the mean of three seeds", "test accuracy", "0.905", "0.92", "ensemble-xray",
           of_ensemble("ensemble-xray", "accuracy")),
    Target("the same, the mean of three seeds", "test F1", "0.928", "0.938", "ensemble-xray",
           of_ensemble("ensemble-xray", "f1")),
    Target("the same, the mean of three seeds", "test precision", "0.882", "", "ensemble-xray",
           of_ensemble("ensemble-xray", "precision")),
    Target("the same, the mean of three seeds", "test recall", "0.979", "", "ensemble-xray",
           of_ensemble("ensemble-xray", "recall")),
    Target("the same, the mean of five folds, threshold out of fold", "test accuracy", "0.905", "0.92",
           "ensemble-xray-folds", of_ensemble("ensemble-xray-folds", "accuracy")),
    Target("the same, the mean of five folds, threshold out of fold", "test F1", "0.928", "0.938",
           "ensemble-xray-folds", of_ensemble("ensemble-xray-folds", "f1")),
    Target("the same, the mean of five folds, threshold out of fold", "test precision", "0.882", "",
           "ensemble-xray-folds", of_ensemble("ensemble-xray-folds", "precision")),
    Target("the same, the mean of five folds, threshold out of fold", "test recall", "0.979", "",
           "ensemble-xray-folds", of_ensemble("ensemble-xray-folds", "recall")),
    Target("polyps, Kvasir-SEG, 64 px, 4 cached copies a crop", "test accuracy", "", "", "augment-cached",
           figure_on_test("augment-cached", "accuracy")),
    Target("the same, augmented anew at every epoch", "test accuracy", "", "", "augment-online",
           figure_on_test("augment-online", "accuracy")),
    Target("PneumoniaMNIST, official split", "test accuracy", "0.854 to 0.946", "0.90", "pneumoniamnist",
           figure_on_test("pneumoniamnist", "accuracy")),
    Target("PneumoniaMNIST, official split", "test AUC", "0.944 to 0.991", "0.970", "pneumoniamnist",
           figure_on_test("pneumoniamnist", "roc_auc")),
    Target("the same, ensemble of three", "test accuracy", "0.854 to 0.946", "0.90", "pneumoniamnist",
           figure_on_test("pneumoniamnist", "accuracy", "ensemble")),
    Target("the same, the mean of three seeds, stronger augmentation", "test accuracy", "0.854 to 0.946", "0.90",
           "ensemble-pneumonia", of_ensemble("ensemble-pneumonia", "accuracy")),
    Target("the same, the mean of three seeds, stronger augmentation", "test AUC", "0.944 to 0.991", "0.970",
           "ensemble-pneumonia", of_ensemble("ensemble-pneumonia", "roc_auc")),
    Target("leak, head alone, CVC-ClinicDB: frames drawn singly less by sequence", "balanced accuracy", "", "",
           "leakage-cvc", of_leak("leakage-cvc", "balanced_accuracy")),
    Target("leak, head alone, LC25000: tiles drawn singly less by source tile", "balanced accuracy", "", "",
           "leakage-lc25000", of_leak("leakage-lc25000", "balanced_accuracy")),
    Target("leak, head alone, brain tumours: slices drawn singly less author's folds", "balanced accuracy", "", "",
           "leakage-brain", of_leak("leakage-brain", "balanced_accuracy")),
]  # fmt: skip


def systems(there: list[str], written: list[str], pages: dict[str, str]) -> list[str]:
    """The table of systems in Markdown: what was published, what was wanted, what was reached.

    written: the lines of the table as it is, where figures of experiments that are not in this clone are. pages: of
    each experiment, what docs/figures.md says.
    """
    cells = [[cell.strip() for cell in line.split("|")] for line in written]
    before = {(row[1], row[3], row[-2]): row[-3] for row in cells if len(row) > 5}
    lines = [
        "| system | protocol | figure | published | wanted | reached | experiment |",
        "|---|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        name = f"`{target.experiment}`"
        if target.experiment in there or target.ours is not_at_hand:
            reached = target.ours()
        else:
            reached = before.get((target.system, target.figure, name), "not run")
        kept = protocol_on(pages, target.experiment)
        cell = (target.system, kept, target.figure, target.published, target.wanted, reached, name)
        lines.append(f"| {' | '.join(cell)} |")
    return lines


if __name__ == "__main__":
    run(main, __doc__, stage=False)
