"""summarise: one table and one picture of a study's cells.

reads   metrics and predictions of the cells, studies/<name>/params.yaml
writes  table.csv, table.md, figure.png, and the few figures that sort experiments as headline.json; of the study
        ensemble also a row a test crop
params  seed, training.sensitivity, evaluate.resamples, evaluate.tta
"""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from lesionlab.errors import InputError
from lesionlab.params import current_overlay, read_params, read_yaml
from lesionlab.stage import run


def main(
    kind: Annotated[Literal["blockwise", "ensemble", "external", "leakage", "variants"], Argument(help="which study")],
    metrics: Annotated[Path, Option(help="folder with a JSON a cell")],
    predictions: Annotated[Path, Option(help="folder with a CSV of the predict stage a cell")],
    table: Annotated[Path, Option(help="CSV file to write")],
    markdown: Annotated[Path, Option(help="Markdown file to write")],
    figure: Annotated[Path, Option(help="PNG file to write")],
    headline: Annotated[Path, Option(help="JSON file to write")],
    crops: Annotated[Path | None, Option(help="CSV file to write, a row a test crop; of the study ensemble")] = None,
) -> None:
    import time

    from lesionlab import tracking

    tracking.prepare()
    from lesionlab.studies import blockwise, ensemble, external, leakage, variants
    from lesionlab.studies.schemas import SCHEMAS
    from lesionlab.studies.tables import Paths, write_summary

    started = time.perf_counter()
    params, file = read_params(), current_overlay().study
    if file is None:
        raise InputError(f"summarise: give --study studies/{kind}/params.yaml")
    modules = {
        "blockwise": blockwise,
        "ensemble": ensemble,
        "external": external,
        "leakage": leakage,
        "variants": variants,
    }
    module = modules[kind]
    paths = Paths(metrics, predictions, table, markdown, figure, headline, crops)
    summary = module.summarise(read_yaml(file, SCHEMAS[kind]), params, paths)
    print(write_summary(paths, summary))
    tracking.log_stage(
        "summarise",
        params={"seed": params.seed, "evaluate.resamples": params.evaluate.resamples},
        history=None,
        metrics=summary.headline,
        pictures=[figure],
        seconds=time.perf_counter() - started,
    )


if __name__ == "__main__":
    run(main, __doc__)
