"""Predicted memory against the engine's measured peak, model by model, at two contexts.

    python bench/memory_prediction.py demo FILE.gguf ... [--contexts 512,2048]

Each measurement is a process of its own: the model is loaded as `kvant run` does, the context is
filled with real steps, and the highest resident memory is read. What Python and its libraries take
before a model is there differs by some ten megabytes between machines (allocators, builds, pages of
another size) and is no part of the prediction: it is measured too, and stands in the prediction in
place of the figure that `kvant recommend` assumes for it. Exit status 1 where a prediction is
further off than a tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import kvant
from kvant.api.source import open_source
from kvant.devices import Variant, predict
from kvant.devices.knowledge import knowledge

# `ru_maxrss` begins with what the parent took where Python starts a process by vfork; the line of
# /proc begins with the process.
_PEAK = """
import re, resource, sys
from pathlib import Path
def peak():
    if sys.platform == "linux":
        found = re.search("VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
"""

_BARE = """
import kvant, kvant.api.model, kvant.engine.load, tokenizers
print(peak())
"""

_CHILD = """
import json
import numpy as np
import kvant
context, threads = int(sys.argv[2]), int(sys.argv[3])
model = kvant.load(sys.argv[1], context=context, threads=threads)
engine = model._engine
sequence, rng = engine.sequence(), np.random.default_rng(0)
for start in range(0, context, 512):
    tokens = rng.integers(0, engine.vocab_size, min(512, context - start)).astype(np.int32)
    engine.step([(sequence, tokens)], logits="last")
print(peak())
"""


def measured(script: str, *arguments: object) -> int:
    """Peak resident bytes of a process that runs ``script``."""
    path = os.pathsep.join([str(Path(kvant.__file__).parent.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", _PEAK + script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def predicted(model: str, context: int, threads: int, bare: int) -> int:
    """What `kvant recommend` would say of the model as it is stored, Python taking ``bare``."""
    checkpoint = open_source(model)
    tensors = {name: w.stored for name, w in checkpoint.weights.items()}
    variant = Variant.of("as it is", checkpoint, tensors, 0)
    memory = predict(variant, checkpoint, context=context, threads=threads).memory
    return memory.total - int(knowledge()["memory"]["interpreter_bytes"]) + bare


def main() -> int:
    """Print a line a model and context."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--contexts", default="256,512")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    bare = measured(_BARE)
    if not arguments.json:
        print(f"Python and its libraries alone: {bare / 1e6:.1f} MB")
    for model in arguments.models:
        for context in map(int, arguments.contexts.split(",")):
            ours = predicted(model, context, arguments.threads, bare)
            real = measured(_CHILD, model, context, arguments.threads)
            rows.append((Path(model).name, context, ours, real, ours / real - 1))
            if not arguments.json:
                print(
                    f"{rows[-1][0]:<28} context {context:>6}  predicted {ours / 1e6:8.1f} MB  "
                    f"measured {real / 1e6:8.1f} MB  {rows[-1][4]:+.1%}",
                    flush=True,
                )
    if arguments.json:
        keys = ("model", "context", "predicted", "measured", "error")
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
    return 0 if all(abs(row[4]) <= 0.1 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
