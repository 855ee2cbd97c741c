"""peak: run a stage, then print the most memory that its process held: python -m benchmarks.peak stages.crop --help.

In MiB, on Linux alone. It is VmHWM, since ru_maxrss begins at the parent's.
"""

import runpy
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def main() -> None:
    """The stage is named by the first argument, and gets the others."""
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
    kib = next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    print(kib / 1024)


if __name__ == "__main__":
    main()
