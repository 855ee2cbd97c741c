"""How every stage starts: a command line from the signature of `main`, and one clear line when it fails."""

import errno
import sys
from collections.abc import Callable

import typer

from lesionlab.errors import InputError


def run(main: Callable, help_text: str) -> None:
    """Run `main` as a command: exit status 0, or 1 and one `error:` line that a user can act on."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(help=help_text.replace("\n\n", "\n\n\b\n"))(main)
    try:
        app()
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename2 or error.filename or "the disk"  # of two files of a copy the second is written
        sys.exit(f"error: {where}: no space left; free some (dvc gc --workspace shows how) and run again")
