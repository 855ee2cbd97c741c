"""How every stage starts: a command line from the signature of `main`, and one clear line when it fails."""

import errno
import functools
import inspect
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from lesionlab.errors import InputError
from lesionlab.params import Overlay, overlaid
from lesionlab.studies.schemas import check_study

CELL_OPTIONS = {  # of a stage that runs as a cell of a study, on top of what `main` takes
    "study": (Path | None, None, "a study's params.yaml: its `set` is laid over params.yaml"),
    "cell": (str | None, None, "dotted key of one more mapping in that file to lay over it"),
    "set": (list[str], [], "KEY=VALUE laid over it last, for example finetune.epochs=3; may be repeated"),
    "seconds": (Path | None, None, "JSON file to write how long the stage took to"),
}


def run(main: Callable, help_text: str, *, stage: bool = True) -> None:
    """Run `main` as a command: exit status 0, or 1 and one `error:` line that a user can act on.

    stage: whether it reads params.yaml, and so can be a cell of a study.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(help=help_text.replace("\n\n", "\n\n\b\n"))(_as_cell(main) if stage else main)
    try:
        app()
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename2 or error.filename or "the disk"  # of two files of a copy the second is written
        sys.exit(f"error: {where}: no space left; free some (dvc gc --workspace shows how) and run again")


def _as_cell(main: Callable) -> Callable:
    """`main` with CELL_OPTIONS added to its signature and obeyed around it."""

    @functools.wraps(main)
    def command(**given: Any) -> None:
        started = time.perf_counter()
        study, cell, settings, seconds = (given.pop(name) for name in CELL_OPTIONS)
        overlay = Overlay(study, cell, tuple(settings))
        check_study(overlay)
        with overlaid(overlay):
            main(**given)
        if seconds is not None:
            from lesionlab.files import write_json  # not above: it brings pandas, and --help must be quick

            write_json(seconds, {"seconds": time.perf_counter() - started}, digits=1)

    annotations = {name: Annotated[kind, typer.Option(help=text)] for name, (kind, _, text) in CELL_OPTIONS.items()}
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotations[name])
        for name, (_, default, _) in CELL_OPTIONS.items()
    ]
    own = inspect.signature(main)
    command.__signature__ = own.replace(parameters=[*own.parameters.values(), *added])
    command.__annotations__ = main.__annotations__ | annotations
    return command
