"""The fold that writes ONNX: what the graphs with and without ONNX Runtime's operators share.

A value is a ``Term``. Sums, rotations and slices are not written when they are folded but when
somebody needs the value, because ONNX Runtime has operators that take them in: a sum that goes into
a norm becomes part of the norm, a rotation part of the attention.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvant.checkpoint import Checkpoint
from kvant.errors import UnsupportedError
from kvant.export.onnx.model import ModelBuilder, nbytes_of
from kvant.export.onnx.weights import BlockRows, FloatRows, Job, Layout, RopeTable
from kvant.graph.ir import WeightRef
from kvant.graph.ops import (
    Add,
    Attention,
    Embedding,
    Fold,
    GeGlu,
    Gelu,
    LayerNorm,
    Linear,
    Moe,
    Positions,
    RmsNorm,
    Rope,
    Row,
    Scale,
    Slice,
    SoftCap,
    SwiGlu,
)
from kvant.packing.groups import Groups

__all__ = ["Emitter", "FloatType", "Term"]

FloatType = Literal["FLOAT", "FLOAT16"]
_SIZES = {"FLOAT": 4, "FLOAT16": 2}
_NUMPY = {"FLOAT": np.float32, "FLOAT16": np.float16}


@dataclass(eq=False, slots=True)
class Term:
    """A value of the graph: ``name`` once it is written, ``op`` of ``inputs`` until then.

    ``whole`` is False for a row that is the same for all texts and still has to be spread.
    """

    width: int
    name: str | None = None
    op: Add | Rope | Slice | None = None
    inputs: tuple[Term, ...] = ()
    whole: bool = True


class Emitter(Fold[Term]):
    """Writes into ``builder``; ``jobs`` are the weights it needs in the data file."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        builder: ModelBuilder,
        *,
        kind: FloatType,
        grids: Mapping[str, Groups],
        float_activations: bool = False,
    ) -> None:
        self.checkpoint, self.b, self.kind, self.grids = checkpoint, builder, kind, grids
        self.float_activations = float_activations
        self.jobs: dict[str, Job] = {}
        self.encodes = checkpoint.graph.encodes
        self.context = int(checkpoint.config.max_position_embeddings)
        self._once: dict[str, str] = {}
        self._layer = 0

    # ---- terms ------------------------------------------------------------------------------

    def name(self, term: Term) -> str:
        """The name of a value; writes what it still waits for."""
        if term.name is None:
            match term.op:
                case Add():
                    left, right = map(self.name, term.inputs)
                    term.name = self.b.node("Add", [left, right], "sum")
                case Slice() as op:
                    term.name = self._sliced(op, self.name(term.inputs[0]))
                case Rope() as op:
                    term.name = self.rotated(op, self.name(term.inputs[0]))
                case None:
                    raise AssertionError("a value without a name waits for an op")
        return term.name

    def value(self, name: str, width: int) -> Term:
        """A value that has been written."""
        return Term(width, name)

    def once(self, key: str, make: str | None = None) -> str | None:
        """What was written under ``key``; with ``make``, remember it."""
        if make is not None:
            self._once[key] = make
        return self._once.get(key)

    def number(self, x: float) -> str:
        """A constant of the model's type."""
        return self.b.constant(x, _NUMPY[self.kind])

    # ---- weights ----------------------------------------------------------------------------

    def vector(self, ref: WeightRef) -> str:
        """Gains or a bias."""
        return self._floats(ref, ref.shape)

    def table(self, ref: WeightRef) -> str:
        """A matrix in rows."""
        return self._floats(ref, ref.shape)

    def _floats(self, ref: WeightRef, shape: tuple[int, ...], *, transposed: bool = False) -> str:
        if ref.name not in self.jobs:
            nbytes = math.prod(shape) * _SIZES[self.kind]
            blob = self.b.blob(ref.name, self.kind, shape, nbytes)
            self.jobs[ref.name] = FloatRows(
                ref.name, self.checkpoint.weights[ref.name], blob, transposed
            )
        return ref.name

    def blocks(self, ref: WeightRef, layout: Layout) -> BlockRows:
        """A matrix in blocks of integers."""
        known = self.jobs.get(ref.name)
        if known is not None:
            assert isinstance(known, BlockRows)
            return known
        g = self.grids[ref.name]
        rows, columns = ref.shape
        count = -(-columns // g.block)
        blob, name = self.b.blob, ref.name
        asymmetric = g.zero == "integer"
        if layout == "nbits":
            each = g.block * g.bits // 8
            codes = blob(f"{name}.codes", "UINT8", (rows, count, each), rows * count * each)
            scales = blob(f"{name}.scales", "FLOAT16", (rows, count), rows * count * 2)
            width = -(-count * g.bits // 8)
            shape: tuple[int, ...] = (rows, width)
            zeros = blob(f"{name}.zeros", "UINT8", shape, rows * width) if asymmetric else None
        else:
            self.b.int2 |= g.bits == 2
            kind = f"{'U' if asymmetric else ''}INT{g.bits}"
            whole, parts = (rows, columns), (rows, count)
            if layout == "columns":
                whole, parts = whole[::-1], parts[::-1]
            codes = blob(f"{name}.codes", kind, whole, nbytes_of(whole, g.bits))
            scales = blob(f"{name}.scales", "FLOAT16", parts, rows * count * 2)
            zeros = None
            if asymmetric:
                zeros = blob(f"{name}.zeros", kind, parts, nbytes_of(parts, g.bits))
        job = BlockRows(name, self.checkpoint.weights[name], g, layout, codes, scales, zeros)
        self.jobs[name] = job
        return job

    def scales(self, job: BlockRows) -> str:
        """Its scales in the model's type; they are stored as halves."""
        return self.raised(job.scales.name)

    def raised(self, name: str) -> str:
        """A tensor of halves in the model's type."""
        if self.kind == "FLOAT16":
            return name
        key = f"raised {name}"
        return self.once(key) or str(
            self.once(key, self.b.node("Cast", [name], f"{name}.f32", to=self.b.type_of("FLOAT")))
        )

    # ---- ops --------------------------------------------------------------------------------

    def linear(self, op: Linear, x: Term) -> Term:
        """A product, and the bias where there is one."""
        ref, source = op.weight, self.name(x)
        if ref.name in self.grids:
            return self.value(self.product_of_blocks(op, source), ref.shape[0])
        if self._is_table(ref):
            y = self.product_with_table(source, self.table(ref), ref)
        else:
            weight = self._floats(ref, ref.shape[::-1], transposed=True)
            y = self.b.node("MatMul", [source, weight], f"{ref.name}/out")
        return self.value(self.biased(op, y), ref.shape[0])

    def biased(self, op: Linear, y: str) -> str:
        """With the linear's bias added."""
        if op.bias is None:
            return y
        return self.b.node("Add", [y, self.vector(op.bias)], f"{op.bias.name}/out")

    def _is_table(self, ref: WeightRef) -> bool:
        """Whether an embedding reads the same weight, which then lies in rows."""
        return any(
            isinstance(node.op, Embedding) and node.op.weight.name == ref.name
            for node in self.checkpoint.graph.nodes
        )

    @abstractmethod
    def product_of_blocks(self, op: Linear, x: str) -> str:
        """A linear whose matrix is in blocks of integers, its bias included."""

    @abstractmethod
    def product_with_table(self, x: str, table: str, ref: WeightRef) -> str:
        """``x @ table.T`` with floats [rows, columns]."""

    def embedding(self, op: Embedding, tokens: Term) -> Term:
        """Rows of the table."""
        ref = op.weight
        if ref.name in self.grids:
            return self.value(self.rows_of_blocks(ref, self.name(tokens)), ref.shape[1])
        y = self.b.node("Gather", [self.table(ref), self.name(tokens)], "embedding", axis=0)
        return self.value(y, ref.shape[1])

    @abstractmethod
    def rows_of_blocks(self, ref: WeightRef, tokens: str) -> str:
        """Rows of a table in blocks of integers."""

    def positions(self, op: Positions, tokens: Term) -> Term:
        """Rows of the table of positions."""
        rows = [self.table(op.weight), self.position_ids()]
        return self.value(self.b.node("Gather", rows, "positions", axis=0), op.weight.shape[1])

    def row(self, op: Row, tokens: Term) -> Term:
        """One row for every token."""
        y = self.b.node("Gather", [self.table(op.weight), self.b.constant(op.index)], "row", axis=0)
        return Term(op.weight.shape[1], y, whole=False)

    def rms_norm(self, op: RmsNorm, x: Term) -> Term:
        """By the standard's operator; parts of a row become an axis of their own."""
        gain, source = self.vector(op.weight), self.name(x)
        if op.groups > 1:
            shape = self.b.constant([0, 0, op.groups, x.width // op.groups])
            source = self.b.node("Reshape", [source, shape], "heads")
        label = f"{op.weight.name}/out"
        y = self.b.node("RMSNormalization", [source, gain], label, axis=-1, epsilon=op.eps)
        if op.groups > 1:
            y = self.b.node("Reshape", [y, self.b.constant([0, 0, x.width])], "rows")
        return self.value(y, x.width)

    def layer_norm(self, op: LayerNorm, x: Term) -> Term:
        """By the standard's operator."""
        inputs = [self.name(x), self.vector(op.weight)]
        inputs += [] if op.bias is None else [self.vector(op.bias)]
        label = f"{op.weight.name}/out"
        y = self.b.node("LayerNormalization", inputs, label, axis=-1, epsilon=op.eps)
        return self.value(y, x.width)

    def rope(self, op: Rope, x: Term) -> Term:
        """When it is needed."""
        return Term(x.width, None, op, (x,))

    def slice(self, op: Slice, x: Term) -> Term:
        """When it is needed."""
        return Term(op.width, None, op, (x,))

    def _sliced(self, op: Slice, x: str) -> str:
        ends = [self.b.constant([v]) for v in (op.start, op.start + op.width, -1)]
        return self.b.node("Slice", [x, *ends], "part")

    def add(self, op: Add, left: Term, right: Term) -> Term:
        """When it is needed; a row that is the same for all tokens is added at once."""
        if left.whole and right.whole:
            return Term(left.width, None, op, (left, right))
        y = self.b.node("Add", [self.name(left), self.name(right)], "sum")
        return Term(left.width, y, whole=left.whole or right.whole)

    def swiglu(self, op: SwiGlu, gate: Term, up: Term) -> Term:
        """``gate sigmoid(gate) up``."""
        g = self.name(gate)
        silu = self.b.node("Mul", [g, self.b.node("Sigmoid", [g], "sigmoid")], "silu")
        return self.value(self.b.node("Mul", [silu, self.name(up)], "gated"), up.width)

    def geglu(self, op: GeGlu, gate: Term, up: Term) -> Term:
        """``gelu(gate) up``."""
        inner = self.gelu(Gelu(tanh=True), gate)
        y = self.b.node("Mul", [self.name(inner), self.name(up)], "gated")
        return self.value(y, up.width)

    def gelu(self, op: Gelu, x: Term) -> Term:
        """By the standard's operator."""
        approximate = "tanh" if op.tanh else "none"
        y = self.b.node("Gelu", [self.name(x)], "gelu", approximate=approximate)
        return self.value(y, x.width)

    def scale(self, op: Scale, x: Term) -> Term:
        """A product with a constant."""
        y = self.b.node("Mul", [self.name(x), self.number(op.factor)], "scaled")
        return self.value(y, x.width)

    def soft_cap(self, op: SoftCap, x: Term) -> Term:
        """``cap tanh(x / cap)``."""
        cap = self.number(op.cap)
        inner = self.b.node(
            "Tanh", [self.b.node("Div", [self.name(x), cap], "part_of_cap")], "tanh"
        )
        return self.value(self.b.node("Mul", [inner, cap], "capped"), x.width)

    def moe(self, op: Moe, x: Term) -> Term:
        """Refused before anything is folded."""
        raise UnsupportedError("Mixtures of experts are not written as ONNX.")

    # ---- attention --------------------------------------------------------------------------

    @abstractmethod
    def rotated(self, op: Rope, x: str) -> str:
        """Rotate heads, by an operator of its own."""

    def turns(self, op: Rope) -> tuple[str, str]:
        """Names of cosines and sines by position, [positions, turned / 2]."""
        said = (op.theta, op.linear, op.factors, op.turned, op.magnitude, op.long_factors)
        key = f"rope {said} {op.original}"
        known = self.once(key)
        if known is not None:
            cos, sin = known.split("\n")
            return cos, sin
        number = sum(k.startswith("rope ") for k in self._once)
        short = self._turns_at(op, f"rope{number}", 1)
        if op.long_factors and self.context > op.original:
            long = self._turns_at(op, f"rope{number}.long", op.original + 1)
            chosen = self.b.choose(
                self.longer_than(op.original),
                list(zip(long, short, strict=True)),
                f"rope{number}.chosen",
            )
            short = chosen[0], chosen[1]
        self.once(key, "\n".join(short))
        return short

    def _turns_at(self, op: Rope, label: str, length: int) -> tuple[str, str]:
        shape = (self.context, op.turned // 2)
        size = math.prod(shape) * _SIZES[self.kind]
        cos, sin = (self.b.blob(f"{label}.{n}", self.kind, shape, size) for n in ("cos", "sin"))
        self.jobs[label] = RopeTable(label, op, length, cos, sin)
        return cos.name, sin.name

    @abstractmethod
    def longer_than(self, length: int) -> str:
        """Whether the text has more tokens than this: a truth value, []."""

    def past(self, op: Attention) -> tuple[str, str]:
        """Inputs with the keys and values of earlier tokens."""
        layer = op.state.layer
        shape = ("batch_size", op.state.heads, "past_sequence_length", op.state.head_dim)
        names = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        return self.b.input(names[0], self.kind, shape), self.b.input(names[1], self.kind, shape)

    def present(self, op: Attention) -> list[str]:
        """Names of the outputs with the keys and values of all tokens; declares them."""
        layer = op.state.layer
        shape = ("batch_size", op.state.heads, "total_sequence_length", op.state.head_dim)
        names = [f"present.{layer}.{part}" for part in ("key", "value")]
        for name in names:
            self.b.output(name, self.kind, shape)
        return names

    def position_ids(self) -> str:
        """int64 [batch, sequence]: how many ones the mask has before; of an encoder, from 0 on."""
        known = self.once("position_ids")
        if known is not None:
            return known
        b, one = self.b, self.b.constant(1)
        length = self.sequence_length()
        if self.encodes:
            found = b.node("Range", [b.constant(0), length, one], "position_ids")
            found = b.node("Unsqueeze", [found, b.constant([0])], "position_ids")
            shape = b.node("Shape", ["input_ids"], "ids_shape")
            return str(self.once("position_ids", b.node("Expand", [found, shape], "position_ids")))
        counted = b.node("CumSum", ["attention_mask", one], "tokens_before")
        counted = b.node("Sub", [counted, one], "all_positions")
        counted = b.node("Max", [counted, b.constant(0)], "all_positions")
        start = b.node("Unsqueeze", [b.node("Neg", [length], "from_end"), b.constant([0])], "start")
        ends = [start, b.constant([np.iinfo(np.int64).max]), b.constant([1])]
        found = b.node("Slice", [counted, *ends], "position_ids")
        return str(self.once("position_ids", found))

    def sequence_length(self) -> str:
        """Tokens that are given, int64 []."""
        return self._dimension("input_ids", 1, "sequence_length")

    def total_length(self) -> str:
        """Tokens given now and before, int64 []."""
        return self._dimension("attention_mask", 1, "total_length")

    def _dimension(self, of: str, axis: int, label: str) -> str:
        known = self.once(label)
        if known is not None:
            return known
        shape = self.b.node("Shape", [of], f"{label}_shape")
        found = self.b.node("Gather", [shape, self.b.constant(axis)], label, axis=0)
        return str(self.once(label, found))
