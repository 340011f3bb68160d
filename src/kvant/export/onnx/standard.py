"""The graph in operators of the standard alone (opset 23, with weights of two bits 25).

Any runtime of that standard can run it. Attention gets its mask spelled out: what is causal beside
a cache was clarified only after opset 23.
"""

from __future__ import annotations

from typing import Any

from kvant.export.onnx.emit import Emitter, Term
from kvant.export.onnx.weights import BlockRows, Layout
from kvant.graph.ir import WeightRef
from kvant.graph.ops import Attention, Linear, Rope

__all__ = ["Standard"]


class Standard(Emitter):
    """Attention, RotaryEmbedding, RMSNormalization, DequantizeLinear."""

    # ---- weights ----------------------------------------------------------------------------

    def product_of_blocks(self, op: Linear, x: str) -> str:
        """A product with dequantised weights, which runtimes recognise and fuse."""
        ref = op.weight
        layout: Layout = "rows" if self._in_rows(ref) else "columns"
        job = self.blocks(ref, layout)
        weight = self._dequantised(job)
        if layout == "rows":
            y = self.product_with_table(x, weight, ref)
        else:
            y = self.b.node("MatMul", [x, weight], f"{ref.name}/out")
        return self.biased(op, y)

    def _in_rows(self, ref: WeightRef) -> bool:
        """Also where columns would not begin at bytes."""
        return self._is_table(ref) or ref.shape[0] * self.grids[ref.name].bits % 8 != 0

    def _dequantised(self, job: BlockRows) -> str:
        key = f"dequantised {job.name}"
        known = self.once(key)
        if known is not None:
            return known
        inputs = [job.codes.name, self.scales(job)]
        if job.zeros is not None:
            inputs.append(job.zeros.name)
        y = self.b.node(
            "DequantizeLinear",
            inputs,
            f"{job.name}/floats",
            axis=1 if job.layout == "rows" else 0,
            block_size=job.grid.block,
        )
        return str(self.once(key, y))

    def product_with_table(self, x: str, table: str, ref: WeightRef) -> str:
        """With the table turned."""
        turned = self.b.node("Transpose", [table], f"{ref.name}/turned", perm=[1, 0])
        return self.b.node("MatMul", [x, turned], f"{ref.name}/out")

    def rows_of_blocks(self, ref: WeightRef, tokens: str) -> str:
        """Rows of the dequantised table."""
        table = self._dequantised(self.blocks(ref, "rows"))
        return self.b.node("Gather", [table, tokens], "embedding", axis=0)

    # ---- attention --------------------------------------------------------------------------

    def attention(self, op: Attention, query: Term, key: Term, value: Term) -> Term:
        """Attention, with a mask of truth values [batch, 1, queries, keys]."""
        names = [self.name(query), self.name(key), self.name(value)]
        attributes: dict[str, Any] = {"softcap": op.soft_cap} if op.soft_cap else {}
        outputs = [self.b.fresh("attended")]
        if op.causal:
            names += [self._seen(op.window), *self.past(op)]
            outputs += self.present(op)
        else:
            names.append(self._encoder_seen())
        y = self.b.node(
            "Attention",
            names,
            "attention",
            outputs=outputs,
            q_num_heads=op.heads,
            kv_num_heads=op.state.heads,
            scale=op.scale,
            **attributes,
        )
        return self.value(y, query.width)

    def _encoder_seen(self) -> str:
        known = self.once("seen")
        if known is not None:
            return known
        b = self.b
        real = b.node("Cast", ["attention_mask"], "real", to=b.type_of("BOOL"))
        keys = b.node("Unsqueeze", [real, b.constant([1, 2])], "real_keys")
        ids = b.node("Shape", ["input_ids"], "ids_shape")
        batch, length = (
            b.node("Gather", [ids, b.constant([axis])], label, axis=0)
            for axis, label in ((0, "batch"), (1, "length"))
        )
        shape = b.node("Concat", [batch, b.constant([1]), length, length], "mask_shape", axis=0)
        return str(self.once("seen", b.node("Expand", [keys, shape], "seen")))

    def _seen(self, window: int) -> str:
        """Keys not after the query, within the window, and not padding."""
        label = f"seen{window}"
        known = self.once(label)
        if known is not None:
            return known
        b, one = self.b, self.b.constant(1)
        total, given = self.total_length(), self.sequence_length()
        before = b.node("Sub", [total, given], "past_length")
        queries = b.node("Range", [before, total, one], "query_places")
        queries = b.node("Unsqueeze", [queries, b.constant([1])], "query_places")
        keys = b.node("Range", [b.constant(0), total, one], "key_places")
        keys = b.node("Unsqueeze", [keys, b.constant([0])], "key_places")
        behind = b.node("Sub", [queries, keys], "behind")
        seen = b.node("GreaterOrEqual", [behind, b.constant(0)], "not_later")
        if window:
            near = b.node("Less", [behind, b.constant(window)], "near")
            seen = b.node("And", [seen, near], "not_later")
        real = b.node("Cast", ["attention_mask"], "real", to=b.type_of("BOOL"))
        real = b.node("Unsqueeze", [real, b.constant([1, 2])], "real_keys")
        return str(self.once(label, b.node("And", [seen, real], "seen")))

    def rotated(self, op: Rope, x: str) -> str:
        """RotaryEmbedding of opset 23."""
        return self.b.node(
            "RotaryEmbedding",
            [x, *self.turns(op), self.position_ids()],
            "rotated",
            num_heads=op.heads,
            rotary_embedding_dim=op.turned,
        )

    def longer_than(self, length: int) -> str:
        """From the mask's length."""
        return self.b.node("Greater", [self.total_length(), self.b.constant(length)], "is_long")
