"""kvant bench and llama.cpp's measuring programs, run as children and read alike."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from common import child, kvant_command, peer_binaries

__all__ = ["Contender", "Kvant", "LlamaBatched", "LlamaBench", "Rates", "Test", "llama_benches"]

Test = tuple[str, int, int]
"""``prompt`` or ``generate``, batch, depth."""


@dataclass(frozen=True)
class Rates:
    """What one child measured: tokens a second by test, and for kvant the share of the limit."""

    rates: dict[Test, float]
    shares: dict[Test, float]


@dataclass(frozen=True)
class Plan:
    """One set of tests on one file, the same for every contender."""

    file: Path
    prompt: int
    generate: int
    batches: tuple[int, ...]
    depths: tuple[int, ...]
    threads: int
    repeat: int


class Contender(Protocol):
    """Something that runs a plan in a process of its own."""

    name: str

    def run(self, plan: Plan) -> Rates:
        """Run it once."""
        ...


class Kvant:
    """``kvant bench``."""

    name = "kvant"

    def run(self, plan: Plan) -> Rates:
        """Tokens a second, and shares of the limits measured in the same process."""
        options = {
            "--prompt": str(plan.prompt),
            "--generate": str(plan.generate),
            "--batch": ",".join(map(str, plan.batches)),
            "--depth": ",".join(map(str, plan.depths)),
            "--threads": str(plan.threads),
            "--repeat": str(plan.repeat),
        }
        words = [word for pair in options.items() for word in pair]
        output = child([*kvant_command(), "bench", plan.file, *words, "--json"]).output
        document = json.loads(output[output.index("{\n") :])
        tests = {(r["test"], r["batch"], r["depth"]): r for r in document["results"]}
        return Rates(
            {test: r["rate"] for test, r in tests.items()},
            {test: r["share"] for test, r in tests.items()},
        )


class LlamaBench:
    """``llama-bench`` with flash attention, for one sequence."""

    def __init__(self, label: str, program: Path, repack: bool) -> None:
        self.name = f"{label}, {'' if repack else 'not '}repacked"
        self._program, self._repack = program, repack

    def run(self, plan: Plan) -> Rates:
        """Tokens a second of the prompt and of generating."""
        options: dict[str, object] = {
            "-m": plan.file,
            "-p": plan.prompt,
            "-n": plan.generate,
            "-d": ",".join(map(str, plan.depths)),
            "-t": plan.threads,
            "-r": plan.repeat,
            "-fa": 1,
            "--repack": int(self._repack),
            "-o": "jsonl",
        }
        run = child([self._program, *(str(word) for pair in options.items() for word in pair)])
        rates = {}
        for result in _json_lines(run.output, "avg_ts"):
            test = "prompt" if result["n_prompt"] else "generate"
            rates[test, 1, int(result["n_depth"])] = float(result["avg_ts"])
        return Rates(rates, {})


class LlamaBatched:
    """``llama-batched-bench``: sequences that generate together, each after a prompt of its own."""

    def __init__(self, label: str, program: Path, repack: bool) -> None:
        self.name = f"{label}, {'' if repack else 'not '}repacked"
        self._program, self._repack = program, repack

    def run(self, plan: Plan) -> Rates:
        """Tokens a second of generating, of all sequences together."""
        (depth,) = plan.depths
        most = max(plan.batches) * (depth + plan.generate)
        options: dict[str, object] = {
            "-m": plan.file,
            "-npp": depth,
            "-ntg": plan.generate,
            "-npl": ",".join(map(str, plan.batches)),
            "-c": most + 64,
            "-t": plan.threads,
            "-fa": "on",
            "--output-format": "jsonl",
        }
        words = [str(word) for pair in options.items() for word in pair]
        run = child([self._program, *words, *([] if self._repack else ["--no-repack"])])
        return Rates(
            {
                ("generate", int(result["pl"]), depth): float(result["speed_tg"])
                for result in _json_lines(run.output, "speed_tg")
            },
            {},
        )


def llama_benches(
    arguments: argparse.Namespace, kind: type[LlamaBench] | type[LlamaBatched]
) -> list[Contender]:
    """Every build given, with and without repacked weights: either may be the faster one."""
    program = "llama-bench" if kind is LlamaBench else "llama-batched-bench"
    found: list[Contender] = []
    for label, path in peer_binaries(arguments, program).items():
        found += [kind(label, path, repack) for repack in arguments.repack]
    return found


def _json_lines(output: str, key: str) -> Iterator[dict[str, Any]]:
    """The results among everything a program printed.

    Raises:
        SystemExit: there are none.
    """
    lines: Sequence[str] = [x for x in output.splitlines() if x.startswith("{") and key in x]
    if not lines:
        raise SystemExit(f"expected results with {key!r}, got:\n{output[-2000:]}")
    yield from map(json.loads, lines)
