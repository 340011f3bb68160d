"""Speed of the attention and row kernels on one thread: how close to the machine's limits.

    python bench/attention_kernels.py [ISA]

Prompt attention is bound by arithmetic (GFLOPS: two products of two operations per query, key and
head element), generation by reading keys and values (GB/s). Caches for generation are larger than
any processor's cache, so they come from memory, as they do between two layers of a model.
"""

from __future__ import annotations

import sys
from statistics import median

import numpy as np

from kvant import _core

GROUP = 4  # query heads a kv head
KINDS = {"F16": 0, "Q8_0": 1}


def attention(head_dim: int, kv_heads: int, rows: int, depth: int, kind: int) -> tuple[float, int]:
    """Seconds of `rows` queries behind `depth` positions (median of 7), and bytes of the cache."""
    rng = np.random.default_rng(0)
    length = depth + rows
    blocks = -(-length // 32)
    _, block_bytes = _core.rows_kv_bytes(kv_heads, head_dim, kind)
    cache = np.zeros(blocks * block_bytes, np.uint8)
    table = rng.permutation(blocks).astype(np.int32)
    k = rng.standard_normal((length, kv_heads * head_dim), np.float32)
    _core.rows_kv_write(kv_heads, head_dim, kind, cache, table, 0, k, k, 0, kv_heads)
    q = rng.standard_normal((rows, kv_heads * GROUP * head_dim), np.float32)
    out = np.empty_like(q)
    scale = head_dim**-0.5
    seconds = [
        _core.rows_attend(
            kv_heads, head_dim, kind, cache, table, depth, q, out, scale, 0, 0.0, False, 1
        )
        for _ in range(7)
    ]
    return median(seconds), cache.nbytes


def main() -> None:
    """Print the table."""
    if len(sys.argv) > 1 and not _core.select_isa(sys.argv[1]):
        raise SystemExit(f"{sys.argv[1]} is not usable here; usable are {_core.isas()}")
    print(f"instruction set {_core.current_isa()}, one thread, {GROUP} query heads a kv head")
    for head_dim in (64, 128):
        for depth in (0, 2048):
            seconds, _ = attention(head_dim, 2, 512, depth, KINDS["F16"])
            pairs = 512 * depth + 512 * 513 / 2
            rate = pairs * 2 * GROUP * head_dim * 4 / seconds / 1e9
            print(f"prompt of 512 behind {depth:4}, head {head_dim:3}: {rate:6.1f} GFLOPS")
    for name, kind in KINDS.items():
        for head_dim in (64, 128):
            kv_heads = 16384 // head_dim
            seconds, size = attention(head_dim, kv_heads, 1, 2048, kind)
            per_head = seconds / kv_heads * 1e6
            print(
                f"generation behind 2048, head {head_dim:3}, {name:4}: {size / seconds / 1e9:5.1f} "
                f"GB/s, {per_head:5.1f} us a kv head"
            )
    for name, n in (("rms_norm", 2048), ("swiglu", 8192), ("add", 2048), ("log_sum_exp", 128256)):
        repeats = 40_000_000 // n
        best = min(_core.rows_time(name, n, repeats // 10) for _ in range(5))
        print(f"{name} of {n}: {best * 1e9:.0f} ns")


if __name__ == "__main__":
    main()
