"""The graph in ONNX Runtime's own operators, which its processors have fast kernels for.

Source: docs/ContribOperators.md of ONNX Runtime, and the graphs its own exporters write.
"""

from __future__ import annotations

from typing import Any

from kvant.errors import UnsupportedError
from kvant.export.onnx.emit import Emitter, Term
from kvant.graph.ir import WeightRef
from kvant.graph.ops import Add, Attention, LayerNorm, Linear, RmsNorm, Rope, Slice

__all__ = ["Fused"]

_ROTARY_STEP = 16
"""GroupQueryAttention rotates heads of a multiple of so many elements."""

_HEAD_STEP = 8
"""It takes heads of a multiple of so many."""

_FLOAT, _INT8 = 1, 4
"""MatMulNBits' accuracy levels: activations as floats, or rounded to eight bits by blocks. Only for
the latter do processors have fast kernels (at 2 and 8 bits up to 300 times as fast)."""


class Fused(Emitter):
    """GroupQueryAttention, MatMulNBits, GatherBlockQuantized, norms that take a sum in."""

    # ---- weights ----------------------------------------------------------------------------

    def product_of_blocks(self, op: Linear, x: str) -> str:
        """MatMulNBits."""
        ref = op.weight
        job = self.blocks(ref, "nbits")
        inputs = [x, job.codes.name, self.scales(job), job.zeros.name if job.zeros else ""]
        if op.bias is not None:
            inputs += ["", self.vector(op.bias)]
        while not inputs[-1]:
            inputs.pop()
        return self.b.node(
            "MatMulNBits",
            inputs,
            f"{ref.name}/out",
            microsoft=True,
            N=ref.shape[0],
            K=ref.shape[1],
            bits=job.grid.bits,
            block_size=job.grid.block,
            accuracy_level=_FLOAT if self.float_activations else _INT8,
        )

    def product_with_table(self, x: str, table: str, ref: WeightRef) -> str:
        """FusedMatMul, which takes the matrix in rows."""
        return self.b.node(
            "FusedMatMul", [x, table], f"{ref.name}/out", microsoft=True, transB=1, alpha=1.0
        )

    def rows_of_blocks(self, ref: WeightRef, tokens: str) -> str:
        """GatherBlockQuantized, on the very bytes that MatMulNBits reads."""
        job = self.blocks(ref, "nbits")
        rows, blocks, each = job.codes.shape
        codes = self.b.view(f"{ref.name}.rows", job.codes, (rows, blocks * each))
        inputs = [codes.name, tokens, self.scales(job)]
        if job.zeros is not None:
            inputs.append(job.zeros.name)
        y = self.b.node(
            "GatherBlockQuantized",
            inputs,
            "embedding",
            microsoft=True,
            bits=job.grid.bits,
            block_size=job.grid.block,
            gather_axis=0,
            quantize_axis=1,
        )
        columns = ref.shape[1]
        if columns == blocks * job.grid.block:
            return y
        ends = [self.b.constant([v]) for v in (0, columns, -1)]  # without what fills up a block
        return self.b.node("Slice", [y, *ends], "embedding")

    # ---- norms ------------------------------------------------------------------------------

    def rms_norm(self, op: RmsNorm, x: Term) -> Term:
        """With the sum before it, where there is one."""
        if op.groups > 1 or not _waits_to_be_summed(x):
            return super().rms_norm(op, x)
        gain = self.vector(op.weight)
        return self._skip("SkipSimplifiedLayerNormalization", x, [gain], op.weight.name, op.eps)

    def layer_norm(self, op: LayerNorm, x: Term) -> Term:
        """With the sum before it, where there is one."""
        if not _waits_to_be_summed(x):
            return super().layer_norm(op, x)
        inputs = [self.vector(op.weight)] + ([self.vector(op.bias)] if op.bias else [])
        return self._skip("SkipLayerNormalization", x, inputs, op.weight.name, op.eps)

    def _skip(self, kind: str, x: Term, weights: list[str], label: str, eps: float) -> Term:
        left, right = map(self.name, x.inputs)
        normed, x.name = self.b.fresh(f"{label}/out"), self.b.fresh("sum")
        self.b.node(
            kind,
            [left, right, *weights],
            label,
            outputs=[normed, "", "", x.name],
            microsoft=True,
            epsilon=eps,
        )
        return self.value(normed, x.width)

    # ---- attention --------------------------------------------------------------------------

    def attention(self, op: Attention, query: Term, key: Term, value: Term) -> Term:
        """GroupQueryAttention; of an encoder MultiHeadAttention."""
        if not op.causal:
            return self._encoder_attention(op, query, key, value)
        if op.state.head_dim % _HEAD_STEP:
            raise UnsupportedError(
                f"{self.checkpoint.path}: has heads of {op.state.head_dim} elements; ONNX "
                f"Runtime's fused attention takes multiples of {_HEAD_STEP}. Use --standard-ops."
            )
        rope = self._rope_inside(query, key)
        if rope is not None:
            (query,), (key,) = query.inputs, key.inputs
        packed = _one_source(query, key, value)
        if packed is not None:
            inputs = [self.name(packed), "", ""]
        else:
            inputs = [self.name(query), self.name(key), self.name(value)]
        inputs += [*self.past(op), self._lengths(), self._total()]
        if rope is not None:
            inputs += self.turns(rope)
        outputs = [self.b.fresh("attended"), *self.present(op)]
        attributes: dict[str, Any] = {"softcap": op.soft_cap} if op.soft_cap else {}
        y = self.b.node(
            "GroupQueryAttention",
            inputs,
            "attention",
            outputs=outputs,
            microsoft=True,
            num_heads=op.heads,
            kv_num_heads=op.state.heads,
            scale=op.scale,
            local_window_size=op.window or -1,
            do_rotary=int(rope is not None),
            rotary_interleaved=0,
            **attributes,
        )
        return self.value(y, query.width if packed is None else op.heads * op.state.head_dim)

    @staticmethod
    def _rope_inside(query: Term, key: Term) -> Rope | None:
        """The rotation that the attention can do itself."""
        q, k = query.op, key.op
        if query.name or key.name or not isinstance(q, Rope) or not isinstance(k, Rope):
            return None
        alike = (q.theta, q.linear, q.factors, q.turned, q.magnitude, q.long_factors) == (
            (k.theta, k.linear, k.factors, k.turned, k.magnitude, k.long_factors)
        )
        fits = q.head_dim % _ROTARY_STEP == 0 and q.turned % _ROTARY_STEP == 0
        return q if alike and fits else None

    def _encoder_attention(self, op: Attention, query: Term, key: Term, value: Term) -> Term:
        mask = self.once("mask32") or self.once(
            "mask32",
            self.b.node("Cast", ["attention_mask"], "mask32", to=self.b.type_of("INT32")),
        )
        inputs = [self.name(query), self.name(key), self.name(value), "", str(mask)]
        y = self.b.node(
            "MultiHeadAttention",
            inputs,
            "attention",
            microsoft=True,
            num_heads=op.heads,
            scale=op.scale,
        )
        return self.value(y, query.width)

    def rotated(self, op: Rope, x: str) -> str:
        """RotaryEmbedding, where the attention cannot do it."""
        return self.b.node(
            "RotaryEmbedding",
            [x, self.position_ids(), *self.turns(op)],
            "rotated",
            microsoft=True,
            num_heads=op.heads,
            rotary_embedding_dim=op.turned,
        )

    def _lengths(self) -> str:
        """Ones in each text's mask, less one: int32 [batch]."""
        known = self.once("lengths")
        if known is not None:
            return known
        b = self.b
        counted = b.node("ReduceSum", ["attention_mask", b.constant([1])], "tokens", keepdims=0)
        less = b.node("Sub", [counted, b.constant(1)], "last_token")
        return str(self.once("lengths", b.node("Cast", [less], "lengths", to=b.type_of("INT32"))))

    def _total(self) -> str:
        """Tokens of the longest text: int32 []."""
        known = self.once("total32")
        if known is not None:
            return known
        b = self.b
        cast = b.node("Cast", [self.total_length()], "total32", to=b.type_of("INT32"))
        return str(self.once("total32", cast))

    def longer_than(self, length: int) -> str:
        """From the mask's length."""
        bound = self.b.constant(length, "int32")
        return self.b.node("Greater", [self._total(), bound], "is_long")


def _waits_to_be_summed(x: Term) -> bool:
    return x.name is None and isinstance(x.op, Add)


def _one_source(query: Term, key: Term, value: Term) -> Term | None:
    """What query, key and value are consecutive slices of, all of it: then none need be cut."""
    at, source = 0, None
    for part in (query, key, value):
        if part.name is not None or not isinstance(part.op, Slice) or part.op.start != at:
            return None
        if source is not None and part.inputs[0] is not source:
            return None
        source, at = part.inputs[0], at + part.width
    return source if source is not None and source.width == at else None
