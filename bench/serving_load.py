"""How well kvant serves: real HTTP clients against ``kvant serve`` and llama.cpp's llama-server.

Both on the same file, the same threads, on the same machine, in turn; prompts of about 128 tokens,
exactly 64 written. The engine alone, in a process without HTTP, says what a server could reach.

    python bench/serving_load.py --model model-Q4_K_M.gguf --llama-cpp build-gcc
    python bench/serving_load.py --model model-Q4_K_M.gguf --llama-cpp build-gcc --parts 16
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from common import (
    HERE,
    Bar,
    Report,
    add_options,
    kvant_command,
    machine,
    peer_binaries,
    table,
    warm,
)
from serving_client import Load, Prompts, Reply, drive

PARTS = ("1", "16", "64", "prefix")
"""So many clients; or 16 clients whose prompts begin with the same 512 tokens."""
PROMPT, WRITTEN, PREFIX, OWN = 128, 64, 512, 32
PARALLEL, CACHE = 64, 32768
RATIO_16, FIRST_16, OF_ENGINE = 1.7, 0.6, 0.8
COLD, WARM, OVERHEAD, FIRST_MS = 2.0, 1.5, 0.05, 5.0


class Engine:
    """The engine without HTTP."""

    name = "engine alone"

    def __init__(self, arguments: argparse.Namespace) -> None:
        a = arguments
        words = [HERE / "serving_engine.py", a.model, a.threads, CACHE, PARALLEL]
        self._process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._out.readline()

    @property
    def _out(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout

    def drive(self, prompts: Sequence[str], clients: int) -> Load:
        """The load, without clients."""
        assert self._process.stdin is not None
        order = {"prompts": list(prompts), "clients": clients, "tokens": WRITTEN}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        found = json.loads(self._out.readline())
        return Load(tuple(Reply(*r) for r in found["replies"]), found["seconds"])

    def close(self) -> None:
        """End it."""
        self._process.communicate()


class Server:
    """A server in a process of its own."""

    def __init__(self, name: str, words: Sequence[object], port: int, **env: str) -> None:
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed at its end
        self._process = subprocess.Popen(
            list(map(str, words)),
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            env={**os.environ, **env},
        )
        ends = time.monotonic() + 120
        while not self._ready():
            if time.monotonic() > ends or self._process.poll() is not None:
                self._log.seek(0)
                raise SystemExit(f"{name} does not start:\n{self._log.read()[-3000:].decode()}")
            time.sleep(0.1)

    def _ready(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health") as reply:
            return bool(reply.status == 200)
        return False

    def drive(self, prompts: Sequence[str], clients: int) -> Load:
        """The load."""
        return drive(self.url, "bench", prompts, clients, WRITTEN)

    def close(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def free_port() -> int:
    """A port nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def kvant_server(arguments: argparse.Namespace) -> Server:
    """``kvant serve``, nothing guessed ahead."""
    port = free_port()
    options = ("--draft", "none", "--keep-alive", "-1", "--threads", arguments.threads)
    sizes = ("--kv-tokens", CACHE, "--parallel", PARALLEL, "--port", port)
    model = ("--model", f"bench={arguments.model}")
    home = tempfile.mkdtemp(prefix="kvant-bench-")
    words = [*kvant_command(), "serve", *model, *options, *sizes]
    return Server("kvant serve", words, port, KVANT_HOME=home)


def peer_server(program: Path, arguments: argparse.Namespace, slots: int, *more: str) -> Server:
    """llama-server with a slot for each client, one cache for all of them, flash attention."""
    port = free_port()
    sizes = ("-c", str(CACHE), "-np", str(slots), "-t", arguments.threads, "-tb", arguments.threads)
    best = ("-kvu", "-fa", "on", "-cb", "-b", "2048", "-ub", "512", "--no-webui")
    words = [program, "-m", arguments.model, *sizes, *best, *more, "--port", port]
    name = "llama-server" + "".join(f" {m}" for m in more)
    return Server(name, words, port)


@contextlib.contextmanager
def closing(contender: Any) -> Iterator[Any]:
    """End it in any case."""
    try:
        yield contender
    finally:
        contender.close()


class Run:
    """What was asked for, and the report it fills."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.report = Report("Serving: tokens a second, seconds to the first", machine())
        self.rows: list[list[str]] = []
        self.loads: dict[str, dict[str, list[Load]]] = {}

    def contenders(self, part: str) -> Iterator[Any]:
        """Each in turn, started and ended."""
        a = self.arguments
        if part != "prefix":
            with closing(Engine(a)) as engine:
                yield engine
        with closing(kvant_server(a)) as server:
            yield server
        slots = 16 if part == "prefix" else int(part)
        for program in peer_binaries(a, "llama-server").values():
            for more in (("--repack",), ("--no-repack",)) if a.repack == "both" else ((a.repack,),):
                with closing(peer_server(program, a, slots, *filter(None, more))) as server:
                    yield server

    def part(self, part: str) -> None:
        """One part, everybody in turn, over all rounds."""
        loads = self.loads.setdefault(part, {})
        for turn in range(self.arguments.rounds):
            for contender in self.contenders(part):
                prompts = Prompts(seed=1000 * turn + 7)  # the same for everybody
                contender.drive(prompts.pieces(1, 16), 1)
                for name, load in self._drive(contender, part, prompts):
                    loads.setdefault(name, []).append(load)
                    note = f"  {part}, {name}, turn {turn + 1}: {load.rate:.1f} tokens/s, "
                    note += f"first {load.first(0.5):.3f} s, 95 % {load.first(0.95):.3f} s"
                    print(note, file=sys.stderr, flush=True)
        for name, found in loads.items():
            self.rows.append([part, name, *map(_figure, self._medians(found))])
            best = [load.to_json() for load in found]
            self.report.results.append({"part": part, "who": name, "runs": best})
        self.judge(part)

    def _drive(self, contender: Any, part: str, prompts: Prompts) -> Iterator[tuple[str, Load]]:
        if part == "prefix":
            prefix = prompts.piece(PREFIX)
            for state in ("cold", "warm"):
                asked = prompts.shared(16, prefix, OWN)
                yield f"{contender.name}, {state}", contender.drive(asked, 16)
            return
        clients = int(part)
        count = 8 if clients == 1 else clients
        yield contender.name, contender.drive(prompts.pieces(count, PROMPT), clients)

    def _medians(self, loads: Sequence[Load]) -> tuple[float, float, float]:
        return (
            statistics.median(load.rate for load in loads),
            statistics.median(load.first(0.5) for load in loads),
            statistics.median(load.first(0.95) for load in loads),
        )

    # ---- bars ------------------------------------------------------------------------------------

    def judge(self, part: str) -> None:
        """The bars of a part, as far as there is somebody to compare with."""
        figures = {name: self._medians(found) for name, found in self.loads[part].items()}
        refused = sum(load.refused for found in self.loads[part].values() for load in found)
        bar = self.report.bars.append
        if part == "prefix":
            for state, least in (("cold", COLD), ("warm", WARM)):
                ours = figures[f"kvant serve, {state}"][0]
                theirs = [f[0] for n, f in figures.items() if n.startswith("llama") and state in n]
                if theirs:
                    what = f"16 clients, prefix of {PREFIX}, {state}"
                    bar(Bar(what, ours / max(theirs), least, False, "x llama-server"))
            return
        rate, first, late = figures["kvant serve"]
        alone = figures.get("engine alone", (rate, first, late))
        peers = {n: f for n, f in figures.items() if n.startswith("llama")}
        bar(Bar(f"{part} clients: refused", refused, 0))
        if part == "1":
            bar(
                Bar(
                    "1 client: first token after the engine's",
                    1e3 * (first - alone[1]),
                    FIRST_MS,
                    unit=" ms",
                )
            )
        if part == "16":
            bar(Bar("16 clients: tokens below the engine's", 1 - rate / alone[0], OVERHEAD))
        if peers and part != "1":
            peer, soonest = max(f[0] for f in peers.values()), min(f[2] for f in peers.values())
            least = RATIO_16 if part == "16" else 1.0
            bar(Bar(f"{part} clients: tokens", rate / peer, least, False, "x llama-server"))
            # The bar at 16 is both of these, or a share of the engine alone.
            enough = part == "16" and rate / alone[0] >= OF_ENGINE
            what = f"{part} clients: first token, 95 %"
            if enough:
                told = (
                    f"16 clients: of the engine alone ({late / soonest:.2f}x llama-server's first)"
                )
                bar(Bar(told, rate / alone[0], OF_ENGINE, False))
            else:
                most = FIRST_16 if part == "16" else 1.0
                bar(Bar(what, late / soonest, most, unit="x llama-server"))
        if part == "64" and "16" in self.loads:
            before = self._medians(self.loads["16"]["kvant serve"])[0]
            bar(Bar("64 clients: tokens, of those at 16", rate / before, 1.0, False))


def _figure(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--threads", default=str(len(os.sched_getaffinity(0))))
    parser.add_argument(
        "--repack",
        choices=("--repack", "--no-repack", "both"),
        default="both",
        help="whether llama-server rearranges weights; the faster one counts (default: both)",
    )
    add_options(parser)
    arguments = parser.parse_args()
    warm(arguments.model)
    run = Run(arguments)
    run.report.head()
    for part in arguments.parts:
        run.part(part)
    header = ["clients", "who", "tokens/s", "first, median s", "first, 95 % s"]
    print(table(header, run.rows))
    return run.report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
