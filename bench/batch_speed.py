"""How fast many requests are answered together, by the engine alone: against llama-server.

Every request has a prompt of its own (random token ids, the same for both) and writes a fixed
number of tokens, the end of the text ignored; all of them come at once. What counts is written
tokens a second from the first request to the last answer, reading included, and the time until
each request's first token. With ``--shared`` all prompts begin with the same tokens: cold, when
nobody has read them before, and warm, when a request before has.

    python bench/batch_speed.py 1b-Q4_K_M.gguf --llama-cpp build-gcc --llama-cpp build-clang
    python bench/batch_speed.py 1b-Q4_K_M.gguf --parts shared --requests 16

kvant's figures are of the engine's batch in a process of its own, without a server; llama-server
is asked over HTTP with token ids, sampling greedily, as many slots as requests, flash attention on.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Bar, Report, add_options, child, machine, peer_binaries, table, warm

PARTS = ("plain", "shared")
LEAST = 2.0
"""Times the peer's tokens a second with 16 requests, for the server to keep 1.7."""
LEAST_COLD, LEAST_WARM = 2.0, 1.5


@dataclass(frozen=True)
class Load:
    """Requests that come at once; of each prompt the first ``shared`` tokens are the same."""

    requests: int
    prompt: int
    write: int
    shared: int = 0

    def prompts(self, seed: int) -> list[list[int]]:
        """Token ids, the same for the same seed."""
        rng = random.Random(seed)
        common = [rng.randrange(1000, 100_000) for _ in range(self.shared)]
        own = self.prompt if not self.shared else max(1, self.prompt - self.shared)
        return [
            common + [rng.randrange(1000, 100_000) for _ in range(own)]
            for _ in range(self.requests)
        ]


@dataclass(frozen=True)
class Figures:
    """Written tokens a second, and the 95th percentile of the time to a first token."""

    rate: float
    first: float


def loads(arguments: argparse.Namespace) -> dict[str, Load]:
    """What is measured, by name."""
    found = {}
    if "plain" in arguments.parts:
        for n in arguments.requests:
            found[f"{n} requests"] = Load(n, arguments.prompt, arguments.write)
    if "shared" in arguments.parts:
        n = max(min(16, n) for n in arguments.requests)
        length = arguments.shared + arguments.own
        found[f"{n} sharing {arguments.shared}"] = Load(
            n, length, arguments.write, arguments.shared
        )
    return found


# ---- kvant -----------------------------------------------------------------------------------


def engine(arguments: argparse.Namespace) -> int:
    """The child: answers the loads it reads, prints its figures."""
    from kvant.api.model import load
    from kvant.engine.batch import Batch, Limits, Request
    from kvant.engine.sampling import Sampling

    wanted = [Load(**entry) for entry in json.loads(arguments.engine)]
    most = max(w.requests * (w.prompt + w.write + 32) for w in wanted)
    greedy = Sampling(temperature=0)
    found = []
    with load(arguments.model, threads=arguments.threads, context=most) as model:

        def answer(prompts: list[list[int]], write: int) -> Figures:
            batch = Batch(
                model._running(), model.tokenizer, context=model.context, limits=Limits(64)
            )
            started = time.perf_counter()
            for prompt in prompts:
                batch.add(Request(prompt, greedy, write, ignore_end=True))
            first: dict[int, float] = {}
            while not batch.idle:
                for number, _ in batch.step():
                    first.setdefault(number, time.perf_counter() - started)
            seconds = time.perf_counter() - started
            return Figures(len(prompts) * write / seconds, _late(list(first.values())))

        answer(Load(1, 32, 4).prompts(99), 4)
        for entry in wanted:
            figures: list[Figures] = []
            for _ in range(2 if entry.shared else 1):  # cold, then warm with other endings
                figures.append(answer(_endings(entry, len(figures)), entry.write))
            found.append([vars(f) for f in figures])
    print(json.dumps(found))
    return 0


def _endings(load: Load, turn: int) -> list[list[int]]:
    """The load's prompts; in a later turn what they do not share is new."""
    prompts = load.prompts(1)
    if turn and load.shared:
        others = Load(load.requests, load.prompt - load.shared, 0).prompts(100 + turn)
        prompts = [p[: load.shared] + o for p, o in zip(prompts, others, strict=True)]
    return prompts


def _late(seconds: list[float]) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


def run_kvant(arguments: argparse.Namespace, wanted: list[Load]) -> list[list[Figures]]:
    """Figures of each load: one, or cold and warm."""
    words = ["--engine", json.dumps([vars(w) for w in wanted]), "--threads", str(arguments.threads)]
    run = child([sys.executable, Path(__file__), arguments.model, *words])
    lists = json.loads(run.output.strip().splitlines()[-1])
    return [[Figures(**f) for f in figures] for figures in lists]


# ---- the peer --------------------------------------------------------------------------------


@contextmanager
def llama_server(
    program: Path, options: list[str], arguments: argparse.Namespace, load: Load
) -> Iterator[str]:
    """A server that is ready; its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    room = load.requests * (load.prompt + load.write + 64)
    words = ["-m", arguments.model, "--port", port, "-np", load.requests, "-c", room]
    words += ["-t", arguments.threads, "-fa", "on", "-cb", "--no-webui", *options]
    process = subprocess.Popen(
        [str(program), *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise SystemExit(f"{program} ended with status {process.returncode}")
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


def ask(address: str, prompt: list[int], write: int, out: list[float], first: list[float]) -> None:
    """One streamed request; notes when its first token came."""
    body = {
        "prompt": prompt,
        "n_predict": write,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "cache_prompt": True,
    }
    request = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    started = time.perf_counter()
    tokens = 0
    with urllib.request.urlopen(request, timeout=600) as answer:
        for line in answer:
            if line.startswith(b"data: "):
                if not tokens:
                    first.append(time.perf_counter() - started)
                tokens += 1
    out.append(time.perf_counter() - started)


def run_server(
    program: Path, options: list[str], arguments: argparse.Namespace, load: Load
) -> list[Figures]:
    """As `run_kvant`, for one load."""
    with llama_server(program, options, arguments, load) as address:
        ask(address, Load(1, 32, 4).prompts(99)[0], 4, [], [])
        figures = []
        for turn in range(2 if load.shared else 1):
            out: list[float] = []
            first: list[float] = []
            started = time.perf_counter()
            threads = [
                threading.Thread(target=ask, args=(address, p, load.write, out, first))
                for p in _endings(load, turn)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            seconds = time.perf_counter() - started
            if len(out) != load.requests:
                raise SystemExit(f"llama-server answered {len(out)} of {load.requests} requests")
            figures.append(Figures(load.requests * load.write / seconds, _late(first)))
        return figures


def peers(arguments: argparse.Namespace) -> dict[str, tuple[Path, list[str]]]:
    """Every build, with and without repacked weights: either may be the faster one."""
    found = {}
    for label, path in peer_binaries(arguments, "llama-server").items():
        for repack in arguments.repack:
            name = f"{label}, {'' if repack else 'not '}repacked"
            found[name] = (path, [] if repack else ["--no-repack"])
    return found


# ---- both ------------------------------------------------------------------------------------


def main() -> int:
    """Measure in turns, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--requests", type=_numbers, default=[1, 16, 64], metavar="N,N")
    parser.add_argument("--prompt", type=int, default=128, metavar="N", help="tokens of a prompt")
    parser.add_argument("--write", type=int, default=64, metavar="N", help="tokens to write")
    parser.add_argument("--shared", type=int, default=512, metavar="N", help="tokens in common")
    parser.add_argument("--own", type=int, default=32, metavar="N", help="tokens after those")
    parser.add_argument("--parts", type=lambda s: s.split(","), default=list(PARTS))
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--repack", type=_numbers, default=[1, 0], metavar="1,0")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    add_options(parser, rounds=1)
    arguments = parser.parse_args()
    if arguments.engine:
        return engine(arguments)
    warm(arguments.model)
    report = Report("Many requests at once: written tokens a second (medians)", machine())
    report.head()
    wanted = loads(arguments)
    figures: dict[tuple[str, str], list[list[Figures]]] = {}
    for turn in range(arguments.rounds):
        for name, load in wanted.items():
            for who, measure in _contenders(arguments, load).items():
                found = measure()
                figures.setdefault((name, who), []).append(found)
                note = ", ".join(f"{f.rate:.1f}/s, first {f.first:.2f} s" for f in found)
                print(f"  {name}, {who}, turn {turn + 1}: {note}", flush=True)
    _conclude(report, wanted, figures)
    return report.finish(arguments)


def _contenders(arguments: argparse.Namespace, load: Load) -> dict[str, Any]:
    found: dict[str, Any] = {"kvant": lambda: run_kvant(arguments, [load])[0]}
    for who, (program, options) in peers(arguments).items():
        found[who] = lambda p=program, o=options: run_server(p, o, arguments, load)
    return found


def _conclude(
    report: Report,
    wanted: dict[str, Load],
    figures: dict[tuple[str, str], list[list[Figures]]],
) -> None:
    rows = []
    for name, load in wanted.items():
        for i, state in enumerate(("cold", "warm") if load.shared else ("",)):
            best: dict[str, Figures] = {}
            for (what, who), turns in figures.items():
                if what == name:
                    best[who] = Figures(
                        statistics.median(t[i].rate for t in turns),
                        statistics.median(t[i].first for t in turns),
                    )
            ours = best.pop("kvant")
            title = f"{name} {state}".strip()
            row: list[object] = [title, f"{ours.rate:.1f}", f"{ours.first:.2f} s"]
            result: dict[str, object] = {"load": title, "rate": ours.rate, "first": ours.first}
            if best:
                who, peer = max(best.items(), key=lambda item: item[1].rate)
                row += [f"{peer.rate:.1f}", f"{peer.first:.2f} s", f"{ours.rate / peer.rate:.2f}x"]
                row += [f"{ours.first / peer.first:.2f}x", who]
                result |= {"peer": who, "peer rate": peer.rate, "peer first": peer.first}
                least = {"cold": LEAST_COLD, "warm": LEAST_WARM}.get(state, LEAST)
                if load.shared or load.requests == 16:
                    ratio = ours.rate / peer.rate
                    report.bars.append(Bar(f"{title}: times {who}", ratio, least, False, "x"))
            rows.append(row)
            report.results.append(result)
    header = ["load", "kvant", "first"]
    if any(len(row) > 3 for row in rows):
        header += ["llama-server", "first", "rate", "first", "its best"]
    print()
    print(table(header, [[*r, *[""] * (len(header) - len(r))] for r in rows]))
    print()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    raise SystemExit(main())
