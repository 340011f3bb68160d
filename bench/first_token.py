"""From nothing to the first token: open a model, make its tokenizer and engine, read 16 tokens.

A process of its own, timed from outside until it speaks; it prints what the engine keeps for keys
and values.
"""

from __future__ import annotations

import json
import sys

PROMPT = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the "
    "age of foolishness, it was the epoch of belief, it was the epoch of incredulity"
)
TOKENS = 16


def main() -> int:
    """Entry point: ``first_token.py MODEL THREADS``."""
    import kvant

    model = kvant.load(sys.argv[1], threads=int(sys.argv[2]), context=4096)
    engine, tokenizer = model._running(), model.tokenizer
    tokens = tokenizer.encode(PROMPT)[:TOKENS]
    logits = engine.step([(engine.sequence(), tokens)], logits="last")
    first = tokenizer.decode([int(logits[0].argmax())])
    print(json.dumps({"first": first, "kv_bytes": engine.memory.kv_bytes}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
