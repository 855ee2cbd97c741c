"""The report of the last run: one HTML page and one Markdown page from what the stages wrote.

    python -m lesionlab.report

reads   metrics/, plots/, pictures/, models/*/model.json, params.yaml, the data set's card, dvc.lock, studies/*/*.csv
writes  report/report.html   self-contained: pictures inside, no script or font from elsewhere
        report/report.md     the same with links to the pictures
"""

from pathlib import Path
from typing import Annotated

from typer import Option

from lesionlab.errors import InputError
from lesionlab.stage import run


def main(out: Annotated[Path, Option(help="folder to write to")] = Path("report")) -> None:
    """Write both pages; what no stage has written yet is said in its section."""
    from lesionlab.report.content import build_sections
    from lesionlab.report.render import write_html, write_markdown

    if not Path("params.yaml").exists():
        raise InputError(f"params.yaml: not found in {Path.cwd()}; run from the repository's root")
    sections = build_sections(out)
    write_html(out / "report.html", sections)
    write_markdown(out / "report.md", sections)
    print(f"{out / 'report.html'}, {out / 'report.md'}")


if __name__ == "__main__":
    run(main, __doc__)
