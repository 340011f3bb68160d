"""The op vocabulary: shape rules, what a trace records, and that no fold forgets an op."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import kvant
from kvant.arch import architecture_names
from kvant.graph import ops
from kvant.graph.build import Graph
from kvant.graph.find import rotary_weights
from kvant.graph.ir import KvState, Op, WeightRef
from kvant.graph.ops import Fold, Rope, run
from kvant.graph.show import show


def _one_layer() -> Graph:
    g = Graph()
    x = g.embedding("token_embd", 10, 8)
    for _ in g.layers(2):
        h = g.rms_norm(x, "attn_norm", eps=1e-5)
        q = g.rope(g.linear(h, "attn_q", 8, bias=True), heads=2, theta=1e4)
        k = g.rope(g.linear(h, "attn_k", 4), heads=1, theta=1e4)
        v = g.linear(h, "attn_v", 4)
        x = g.add(x, g.attention(q, k, v, heads=2, kv_heads=1))
    g.linear(x, "token_embd", 10)
    return g


def _all_ops() -> list[type[Op]]:
    return [value for value in vars(ops).values() if isinstance(value, type) and _is_op(value)]


def _is_op(value: type) -> bool:
    return issubclass(value, Op) and value is not Op


def _all_folds() -> list[type[Fold[object]]]:
    root = Path(kvant.__path__[0])
    for path in root.rglob("*.py"):
        if "(Fold[" in path.read_text():
            parts = path.relative_to(root).with_suffix("").parts
            importlib.import_module(".".join(("kvant", *parts)))
    found, waiting = [], list(Fold.__subclasses__())
    while waiting:
        fold = waiting.pop()
        found.append(fold)
        waiting += fold.__subclasses__()
    return [fold for fold in found if fold.__module__.startswith("kvant.")]


def test_every_op_has_a_handler_in_the_fold_and_every_fold_has_them_all() -> None:
    names = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", op.__name__).lower() for op in _all_ops()}
    names = {name.replace("_glu", "glu") for name in names}
    assert names == set(Fold.__abstractmethods__)
    assert _all_folds(), "the reference interpreter is one"
    for fold in _all_folds():
        if fold.__subclasses__():  # shared by folds, none itself
            continue
        assert not fold.__abstractmethods__, f"{fold} lacks {set(fold.__abstractmethods__)}"


def test_every_op_is_used_by_some_architecture() -> None:
    from checkpoint.small_models import CONFIGS
    from kvant.arch import find_hf

    assert set(CONFIGS) == set(architecture_names())
    used: set[type[Op]] = set()
    for config in CONFIGS.values():
        arch = find_hf(config, "")
        used |= {type(node.op) for node in arch.trace(arch.from_hf(config, "")[0]).nodes}
    assert used == set(_all_ops())


def test_a_fold_without_a_handler_cannot_be_made() -> None:
    class Half(Fold[int]):
        def add(self, op: ops.Add, left: int, right: int) -> int:
            return left + right

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]


def test_the_trace_records_weights_layers_and_states() -> None:
    g = _one_layer()
    assert list(g.weights)[:3] == [
        "token_embd.weight",
        "blk.0.attn_norm.weight",
        "blk.0.attn_q.weight",
    ]
    assert g.weights["blk.1.attn_k.weight"] == WeightRef("attn_k", "weight", 1, (4, 8))
    assert g.states == [KvState(0, 1, 4), KvState(1, 1, 4)]
    assert g.layer_count == 2
    assert g.nodes[0].layer is None
    assert g.nodes[-1].layer is None
    assert {n.layer for n in g.nodes[1:-1]} == {0, 1}
    assert g.output.width == 10


def test_rotary_weights_are_those_that_feed_a_rope() -> None:
    heads = rotary_weights(_one_layer())
    assert heads == {
        f"blk.{layer}.{name}": count
        for layer in (0, 1)
        for name, count in (("attn_q.weight", 2), ("attn_q.bias", 2), ("attn_k.weight", 1))
    }


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda g, x: g.add(x, g.linear(x, "up", 4)), "widths 8 and 4 differ"),
        (lambda g, x: g.swiglu(x, g.linear(x, "up", 4)), "differ"),
        (lambda g, x: g.rms_norm(x, "n", eps=1e-5, groups=3), "3 parts"),
        (lambda g, x: g.rope(x, heads=3, theta=1e4), "3 parts"),
        (lambda g, x: g.rope(x, heads=8, theta=1e4), "2 parts"),
        (lambda g, x: g.rope(x, heads=2, theta=1e4, factors=(1.0,)), "2 frequency factors"),
        (lambda g, x: g.rope(x, heads=2, theta=1e4, turned=6), "6 of 4"),
        (lambda g, x: g.split(x, 4, 3), "add up to 8"),
        (lambda g, x: g.geglu(x, g.linear(x, "up", 4)), "differ"),
        (lambda g, x: g.attention(x, x, x, heads=2, kv_heads=1), "1 x 4"),
        (lambda g, x: g.attention(x, x, x, heads=2, kv_heads=2), "belongs into a layer"),
        (lambda g, x: g.attention(x, x, x, heads=2, kv_heads=3), "3 parts"),
        (lambda g, x: g.linear(x, "token_embd", 11), "declared with shape"),
        (lambda g, x: g.moe(x, experts=4, used=5, inner=8), "5 of 4 experts"),
        (lambda g, x: g.row("token_types", 2, 8, index=2), "no row 2 of 2"),
        (
            lambda g, x: g.attention(x, x, x, heads=2, kv_heads=2, window=3, causal=False),
            "belongs into a layer",
        ),
        (lambda g, x: g.moe(x, experts=4, used=0, inner=8), "0 of 4 experts"),
        (lambda g, x: Graph().add(x, x), "another graph"),
    ],
)
def test_shape_rules(mistake: object, message: str) -> None:
    g = Graph()
    x = g.embedding("token_embd", 10, 8)
    with pytest.raises(ValueError, match=message):
        mistake(g, x)  # type: ignore[operator]


def test_rope_frequencies() -> None:
    rope = Rope(heads=1, head_dim=4, theta=100.0, linear=2.0, factors=(1.0, 5.0), turned=4)
    np.testing.assert_allclose(rope.frequencies(99), [0.5, 0.01])
    long = replace(rope, long_factors=(5.0, 10.0), original=8)
    np.testing.assert_allclose(long.frequencies(8), [0.5, 0.01])
    np.testing.assert_allclose(long.frequencies(9), [0.1, 0.005])
    part = replace(rope, head_dim=16)
    np.testing.assert_allclose(part.frequencies(1), rope.frequencies(1))


class _Counting(Fold[int]):
    """Counts the ops a value depends on, and how many values are alive."""

    def embedding(self, op: ops.Embedding, tokens: int) -> int:
        return tokens + 1

    def positions(self, op: ops.Positions, tokens: int) -> int:
        return tokens + 1

    def linear(self, op: ops.Linear, x: int) -> int:
        return x + 1

    def rms_norm(self, op: ops.RmsNorm, x: int) -> int:
        return x + 1

    def layer_norm(self, op: ops.LayerNorm, x: int) -> int:
        return x + 1

    def rope(self, op: ops.Rope, x: int) -> int:
        return x + 1

    def attention(self, op: ops.Attention, query: int, key: int, value: int) -> int:
        return query + key + value + 1

    def swiglu(self, op: ops.SwiGlu, gate: int, up: int) -> int:
        return gate + up + 1

    def geglu(self, op: ops.GeGlu, gate: int, up: int) -> int:
        return gate + up + 1

    def gelu(self, op: ops.Gelu, x: int) -> int:
        return x + 1

    def scale(self, op: ops.Scale, x: int) -> int:
        return x + 1

    def soft_cap(self, op: ops.SoftCap, x: int) -> int:
        return x + 1

    def slice(self, op: ops.Slice, x: int) -> int:
        return x + 1

    def moe(self, op: ops.Moe, x: int) -> int:
        return x + 1

    def row(self, op: ops.Row, tokens: int) -> int:
        return tokens + 1

    def add(self, op: ops.Add, left: int, right: int) -> int:
        return left + right + 1


def test_run_gives_the_output_or_any_value_on_the_way() -> None:
    g = _one_layer()
    assert run(g, _Counting(), 0, until=g.nodes[0].result) == 1
    assert run(g, _Counting(), 0, until=g.nodes[-1].inputs[0]) + 1 == run(g, _Counting(), 0)


def test_values_are_dropped_after_their_last_use_and_never_before() -> None:
    g = _one_layer()
    alive = {g.tokens}
    for node, dying in zip(g.nodes, g.last_uses(), strict=True):
        assert set(node.inputs) <= alive
        assert set(dying) <= set(node.inputs)
        alive = (alive - set(dying)) | {node.result}
    assert alive == {g.output}


def test_show_writes_equal_layers_once() -> None:
    text = show(_one_layer())
    assert text.splitlines() == [
        "%1 = embedding(tokens) token_embd.weight [10, 8] -> 8",
        "layers 0-1, each:",
        "  %1 = rmsnorm(x) attn_norm.weight [8] eps=1e-05 groups=1 -> 8",
        "  %2 = linear(%1) attn_q.weight [8, 8] attn_q.bias [8] -> 8",
        "  %3 = rope(%2) heads=2 head_dim=4 theta=10000 linear=1 turned=4 -> 8",
        "  %4 = linear(%1) attn_k.weight [4, 8] -> 4",
        "  %5 = rope(%4) heads=1 head_dim=4 theta=10000 linear=1 turned=4 -> 4",
        "  %6 = linear(%1) attn_v.weight [4, 8] -> 4",
        "  %7 = attention(%3, %5, %6) heads=2 scale=0.5 kv=1x4 -> 8",
        "  %8 = add(x, %7) -> 8",
        "%1 = linear(x) token_embd.weight [10, 8] -> 10",
    ]


def test_show_tells_layers_apart() -> None:
    g = Graph()
    x = g.embedding("token_embd", 10, 8)
    for layer in g.layers(3):
        x = g.linear(x, "ffn_up", 8, bias=layer == 1)
    g.add(x, g.nodes[1].result)
    text = show(g)
    assert "layer 0:" in text
    assert "layer 1:" in text
    assert "layer 2:" in text
    assert "add(x, x-2)" in text


def test_layers_can_be_added_in_groups() -> None:
    g = Graph()
    g.embedding("token_embd", 10, 8)
    seen: Sequence[int] = [*g.layers(2), *g.layers(1)]
    assert list(seen) == [0, 1, 2]
    assert g.layer_count == 3
