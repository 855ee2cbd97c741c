"""bench: each short cut against the plain way, in the same run: python -m benchmarks.bench.

writes  benchmarks/results.json  machine, versions, seed, seconds of each part, rows
        README.md                the same as a table between its markers

Every part runs in a process of its own, since threads and memory are a process's. A row that falls short is shown.
"""

import platform
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import Annotated

from typer import Option

from benchmarks.rows import Row
from lesionlab.files import read_json, whole_file, write_json
from lesionlab.params import read_params
from lesionlab.progress import progress
from lesionlab.stage import run
from lesionlab.training.backend import choose_kernels, vector_instructions

PARTS = ("training", "detection", "crops", "idle")
PACKAGES = ("tensorflow", "keras", "numpy", "scipy", "pillow", "scikit-learn", "pandas", "dvc")
RESULTS = Path("benchmarks/results.json")
README, BEGIN, END = Path("README.md"), "<!-- bench: make bench -->", "<!-- end of bench -->"
HEAD = ("what", "plain way", "ours", "ratio", "floor", "asked for")


def main(
    part: Annotated[list[str] | None, Option(help=f"one of {', '.join(PARTS)}; may be repeated")] = None,
    out: Annotated[Path, Option(help="JSON file to write; rows of other parts stay in it")] = RESULTS,
) -> None:
    """Measure all rows, write them and print their table."""
    seed = read_params().seed
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    same = {"machine": machine(), "versions": versions, "seed": seed}
    before = read_json(out) if out.exists() else {}
    if before | same != before:
        before = {}  # of another machine or other versions: not to be compared
    rows = [Row(**row) for row in before.get("rows", ()) if row.get("part") in PARTS]
    seconds = before.get("seconds", {})
    for name in progress(part or PARTS, desc="bench", unit="part"):
        started = time.perf_counter()
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows = merge(rows, name, pool.submit(rows_of, name, seed).result())
        seconds[name] = round(time.perf_counter() - started)
        # After each part: what was measured is not lost with what follows.
        write_json(out, same | {"seconds": seconds, "rows": [asdict(row) for row in rows]}, digits=4)
    if out == RESULTS:
        head, rest = README.read_text().split(BEGIN)
        lines = [BEGIN, *markdown(rows, same["machine"]), END]
        with whole_file(README) as temporary:
            temporary.write_text(head + "\n".join(lines) + rest.split(END)[1])
    print("\n".join(["", *table(rows)]))


def rows_of(part: str, seed: int) -> list[Row]:
    """Measure the rows of one module of this folder."""
    choose_kernels()  # the module may import Keras
    return import_module(f"benchmarks.{part}").rows(seed)


def merge(rows: list[Row], part: str, measured: list[Row]) -> list[Row]:
    """Rows with those of `part` replaced by what was measured now, in the order of PARTS."""
    kept = [row for row in rows if row.part != part] + [replace(row, part=part) for row in measured]
    return sorted(kept, key=lambda row: PARTS.index(row.part))


def machine() -> dict[str, str | int]:
    """The processor, its vector instructions (those of several generations may have one name), and its cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return {"processor": f"{name}, {vector_instructions()}", "cores": cpu_count() or 1}


def reached(row: Row) -> bool:
    """Whether a row shows what it must; a row without a ratio does not."""
    if row.ratio is None:
        return False
    return (row.at_least is None or row.ratio >= row.at_least) and (row.at_most is None or row.ratio <= row.at_most)


def table(rows: list[Row]) -> list[str]:
    """Lines of the table: figures, what was asked for, and notes below."""
    cells = [HEAD]
    for number, row in enumerate(rows, start=1):
        asked = f">= {row.at_least:g}" if row.at_least is not None else f"<= {row.at_most:g}"
        asked += "" if reached(row) else "  NOT MEASURED" if row.ratio is None else "  FALLS SHORT"
        mark = f" [{number}]" if row.note else ""
        figures = ("-" if figure is None else f"{figure:.3g}" for figure in (row.plain, row.ours, row.ratio, row.floor))
        cells.append((row.row + mark, *figures, asked))
    widths = [max(len(line[k]) for line in cells) for k in range(len(HEAD))]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *(line[k].rjust(widths[k]) for k in range(1, 5)), line[5]])
        for line in cells
    ]
    notes = [f"[{number}] {row.note}" for number, row in enumerate(rows, start=1) if row.note]
    legend = [
        "Seconds unless a note says otherwise. ratio: plain way over ours; where it must be at most so much, ours over",
        "plain. floor: the ratio that counted operations allow.",
    ]
    return [*lines, "", *legend, *notes]


def markdown(rows: list[Row], processor: dict[str, str | int]) -> list[str]:
    """The rows as a table in Markdown, what falls short marked."""
    lines = [f"| {processor['processor']}, {processor['cores']} cores | ratio | limit | asked for |"]
    lines.append("|---|---|---|---|")
    for row in rows:
        ratio, floor = ("-" if figure is None else f"{figure:.2f}" for figure in (row.ratio, row.floor))
        asked = f"at least {row.at_least:g}" if row.at_least is not None else f"at most {row.at_most:g}"
        if row.ratio is None:
            asked += f"; not measured: {row.note}"
        elif not reached(row):
            asked += ", **falls short**"
        lines.append(f"| {row.row} | {ratio} | {floor} | {asked} |")
    return lines


if __name__ == "__main__":
    run(main, __doc__)
