"""From nothing to the first token: open a model, make its tokenizer and engine, read 16 tokens.

A process of its own, timed from outside; prints what the engine keeps for keys and values.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PROMPT = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the "
    "age of foolishness, it was the epoch of belief, it was the epoch of incredulity"
)
TOKENS = 16


def main() -> int:
    """Entry point: ``first_token.py MODEL THREADS``."""
    import numpy as np

    from kvant.checkpoint import open_checkpoint
    from kvant.engine import load_engine
    from kvant.tokenizer.build import build

    path, threads = Path(sys.argv[1]), int(sys.argv[2])
    checkpoint = open_checkpoint(path)
    definition = checkpoint.tokenizer()
    if definition is None:
        raise SystemExit(f"{path} has no tokenizer; give a model that has one")
    tokenizer = build(definition)
    engine = load_engine(checkpoint, threads=threads, kv_tokens=4096, kv_type="f16")
    tokens = np.asarray(tokenizer.encode(PROMPT)[:TOKENS], np.int32)
    logits = engine.step([(engine.sequence(), tokens)], logits="last")
    first = tokenizer.decode([int(logits[0].argmax())])
    print(json.dumps({"first": first, "kv_bytes": engine.memory.kv_bytes}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
