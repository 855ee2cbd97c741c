"""Progress bars: lively on a terminal, a line now and then in a log."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

SECONDS_BETWEEN_LOG_LINES = 20.0


def progress(iterable: Iterable | None = None, **options: object) -> tqdm:
    """Tqdm on stderr; where that is no terminal (a log, CI), at most a line every 20 seconds."""
    if not sys.stderr.isatty():
        options |= {"mininterval": SECONDS_BETWEEN_LOG_LINES, "maxinterval": 2 * SECONDS_BETWEEN_LOG_LINES}
        options.pop("leave", None)
    return tqdm(iterable, **options)
