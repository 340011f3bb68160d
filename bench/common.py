"""What the measuring scripts share: children timed in turn, medians, the machine, tables, bars.

Absolute times say little from one machine, or one minute, to the next. So contenders take turns
(A B A B ...), each run is a fresh process, and what is judged is the ratio of medians.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

__all__ = [
    "WORK",
    "Bar",
    "Report",
    "Run",
    "add_options",
    "alternate",
    "child",
    "kvant_command",
    "machine",
    "median",
    "oracle",
    "peer_binaries",
    "table",
    "warm",
]

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
WORK = HERE / "work"
"""Where models and outputs go unless told otherwise; git ignores it."""


@dataclass(frozen=True)
class Run:
    """One child process: wall-clock seconds from start to exit, and its peak resident memory.

    Linux counts what the parent had resident at the fork as the child's, so the scripts keep
    themselves small: they import nothing large and hold no weights.
    """

    seconds: float
    peak_bytes: int
    output: str
    first_output_seconds: float | None = None
    """From start to the first thing it printed; None where it printed nothing."""


def child(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    quiet: bool = True,
) -> Run:
    """Run a command to its end; its output is kept only to be shown if it fails.

    Raises:
        SystemExit: it failed; the message has the command and the end of its output.
    """
    words = [str(part) for part in command]
    started = time.perf_counter()
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(environment or {})},
    )
    assert process.stdout is not None
    output, spoke = _drain(process.stdout, None if quiet else sys.stderr.buffer)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    text = output.decode(errors="replace")
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}\nended with status {process.returncode}:\n{text}")
    scale = 1 if sys.platform == "darwin" else 1024
    first = None if spoke is None else spoke - started
    return Run(seconds, usage.ru_maxrss * scale, text, first)


def _drain(stream: IO[bytes], echo: IO[bytes] | None) -> tuple[bytes, float | None]:
    """What was printed (the end of it), and when the first of it came."""
    kept, spoke = b"", None
    while chunk := os.read(stream.fileno(), 1 << 16):
        spoke = spoke or time.perf_counter()
        kept = (kept + chunk)[-20_000:]
        if echo is not None:
            echo.write(chunk)
            echo.flush()
    stream.close()
    return kept, spoke


def alternate(contenders: Mapping[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """Let all contenders run once, then all again, ``rounds`` times."""
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name, contender in contenders.items():
            run = contender()
            runs[name].append(run)
            note = f"  {name}, turn {turn + 1} of {rounds}: {run.seconds:.2f} s"
            print(note, file=sys.stderr, flush=True)
    return runs


def median(runs: Iterable[Run]) -> float:
    """Median of their seconds."""
    return statistics.median(run.seconds for run in runs)


def warm(*paths: Path) -> None:
    """Read files once, so that every contender finds them in the page cache."""
    buffer = bytearray(1 << 22)
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            with file.open("rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass


def kvant_command() -> list[str]:
    """How to start the kvant that this Python imports."""
    return [sys.executable, "-m", "kvant"]


def peer_binaries(arguments: argparse.Namespace, name: str) -> dict[str, Path]:
    """A program of llama.cpp's from each build given by ``--llama-cpp DIR`` or ``LLAMA_CPP_DIR``.

    The key tells the builds apart; several may be given because compilers differ, and the fastest
    is the one to compare with. Empty where none is given: the scripts then measure kvant alone.

    Raises:
        SystemExit: a folder does not have the program.
    """
    given = arguments.llama_cpp or os.environ.get("LLAMA_CPP_DIR", "").split(os.pathsep)
    found = {}
    for folder in filter(None, given):
        places = [Path(folder) / sub / name for sub in (".", "bin", "build/bin")]
        usable = [p for p in places if p.is_file() and os.access(p, os.X_OK)]
        if not usable:
            raise SystemExit(
                f"{folder} holds no program {name}; bench/README.md says how to build it"
            )
        label = "llama.cpp" if len(given) == 1 else f"llama.cpp in {Path(folder).name}"
        found[label] = usable[0]
    return found


def oracle(name: str) -> Any:
    """A module of tests/oracles: ``ggml`` itself by ctypes, ``weights`` of many kinds."""
    folder = str(REPOSITORY / "tests")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(f"oracles.{name}")


def add_options(
    parser: argparse.ArgumentParser, *, peer: bool = True, rounds: int | None = 2
) -> None:
    """The options most scripts have; those that time nothing have no ``rounds``."""
    if peer:
        parser.add_argument(
            "--llama-cpp",
            metavar="DIR",
            action="append",
            help="folder with llama.cpp's programs; may be given several times, the fastest build "
            "counts (default: the environment's LLAMA_CPP_DIR)",
        )
    if rounds is not None:
        parser.add_argument(
            "--rounds", type=int, default=rounds, metavar="N", help=f"turns each (default {rounds})"
        )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    parser.add_argument(
        "--check", action="store_true", help="exit with status 1 if a bar is missed"
    )


def machine(work: Path | None = None) -> dict[str, str]:
    """What the figures depend on."""
    info = {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "processors": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "kvant": kvant_version(),
        "load before": " ".join(f"{x:.2f}" for x in os.getloadavg()),
    }
    if work is not None:
        info["free disk"] = f"{shutil.disk_usage(work).free / 1e9:.0f} GB"
    return info


def kvant_version() -> str:
    """Version and instruction set, asked of a child so that this process stays small."""
    script = (
        "import kvant, kvant._core as c; "
        "print(getattr(kvant, '__version__', '?'), c.current_isa(), *c.cpu_features())"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith(key)), "")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns aligned: text to the left, everything after the first column to the right."""
    cells = [list(map(str, header)), *(list(map(str, row)) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        first, rest = row[0].ljust(widths[0]), row[1:]
        lines.append(
            "  ".join([first, *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))])
        )
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)


@dataclass(frozen=True)
class Bar:
    """A figure and the limit it has to keep."""

    what: str
    value: float
    limit: float
    at_most: bool = True
    unit: str = ""

    @property
    def holds(self) -> bool:
        """Whether the figure keeps its limit."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        verdict = "holds " if self.holds else "MISSED"
        return f"{verdict}  {self.what}: {self.value:.3g}{self.unit} ({sign} {self.limit:g})"


@dataclass
class Report:
    """What a script found: printed, and written as JSON on request."""

    title: str
    machine: dict[str, str] = field(default_factory=dict)
    results: list[dict[str, object]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)

    def finish(self, arguments: argparse.Namespace) -> int:
        """Print the bars; write the JSON file; the exit status."""
        for bar in self.bars:
            print(bar)
        if arguments.json:
            content = {
                "title": self.title,
                "machine": self.machine,
                "results": self.results,
                "bars": [{**asdict(bar), "holds": bar.holds} for bar in self.bars],
            }
            arguments.json.write_text(json.dumps(content, indent=1) + "\n")
        return int(arguments.check and not all(bar.holds for bar in self.bars))

    def head(self) -> None:
        """Print the title and the machine."""
        print(self.title)
        for key, value in self.machine.items():
            print(f"  {key}: {value}")
        print(flush=True)
