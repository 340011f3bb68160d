"""How long `import kvant` and `kvant --help` take, in fresh processes with the files cached.

The bare interpreter's own start is measured beside them and not subtracted from the command line,
which a person waits for as a whole; the import's bar is the difference.

    python bench/import_time.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial

from common import Bar, Report, add_options, alternate, child, kvant_command, machine, table

IMPORT_SECONDS = 0.15
HELP_SECONDS = 0.3


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Time import kvant and kvant --help.")
    add_options(parser, peer=False, rounds=11)
    arguments = parser.parse_args()
    report = Report("Starting: seconds in fresh processes", machine())
    report.head()
    python = [sys.executable, "-c"]
    contenders = {
        "python alone": partial(child, [*python, "pass"]),
        "import numpy": partial(child, [*python, "import numpy"]),
        "import kvant": partial(child, [*python, "import kvant"]),
        "kvant --version": partial(child, [*kvant_command(), "--version"]),
        "kvant --help": partial(child, [*kvant_command(), "--help"]),
    }
    alternate(contenders, 1)  # caches, compiled bytecode
    runs = alternate(contenders, arguments.rounds)
    rows = []
    medians = {}
    for name, found in runs.items():
        seconds = sorted(run.seconds for run in found)
        medians[name] = statistics.median(seconds)
        rows.append([name, f"{medians[name]:.3f}", f"{seconds[0]:.3f}", f"{seconds[-1]:.3f}"])
        report.results.append({"what": name, "seconds": seconds, "median": medians[name]})
    print(table(["", "median", "least", "most"], rows))
    print()
    own = medians["import kvant"] - medians["python alone"]
    report.bars += [
        Bar("import kvant beyond the interpreter's start", own, IMPORT_SECONDS, unit=" s"),
        Bar("kvant --help, all in all", medians["kvant --help"], HELP_SECONDS, unit=" s"),
    ]
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
