"""The engine alone under the load that clients make: what a server can reach at most.

A process of its own. It reads a line of JSON from standard input ({"prompts", "clients",
"tokens"}), prints a line with what it measured, and takes the next.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from typing import Any

import kvant
from kvant.api.source import open_source, tokenizer_of
from kvant.engine import load_engine
from kvant.engine.batch import Batch, Limits, Request
from kvant.tokenizer.build import Tokenizer


def run(batch: Batch, tokenizer: Tokenizer, load: dict[str, Any]) -> dict[str, Any]:
    """Requests as if so many clients asked, each one after the other."""
    shares = [deque(load["prompts"][i :: load["clients"]]) for i in range(load["clients"])]
    sampling = kvant.Sampling(temperature=0)
    began = time.perf_counter()
    asked: dict[int, tuple[int, float, float]] = {}
    found: list[tuple[int, float, float]] = []

    def ask(client: int) -> None:
        if shares[client]:
            at = time.perf_counter()
            prompt = tokenizer.encode(shares[client].popleft())
            request = Request(prompt, sampling, max_tokens=load["tokens"], ignore_end=True)
            asked[batch.add(request)] = (client, at, 0.0)

    for client in range(load["clients"]):
        ask(client)
    while asked:
        for number, piece in batch.step():
            if not isinstance(piece, str):
                raise piece
            client, at, first = asked[number]
            now = time.perf_counter()
            asked[number] = (client, at, first or now - at)
            if piece.finish_reason:
                assert piece.usage is not None
                found.append((piece.usage.completion_tokens, asked[number][2], now - at))
                del asked[number]
                ask(client)
    return {"replies": found, "seconds": time.perf_counter() - began}


def main() -> int:
    """Entry point: ``serving_engine.py MODEL THREADS CACHE_TOKENS PARALLEL``."""
    path, threads, tokens, parallel = sys.argv[1], *map(int, sys.argv[2:5])
    checkpoint = open_source(path)
    tokenizer = tokenizer_of(checkpoint)
    engine = load_engine(checkpoint, threads=threads, kv_tokens=tokens)
    context = min(tokens, engine.context)
    batch = Batch(engine, tokenizer, context=context, limits=Limits(running=parallel))
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(batch, tokenizer, json.loads(line))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
