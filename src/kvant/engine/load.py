"""A checkpoint becomes an engine: memory counted first, weights read into panels."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from kvant import _core
from kvant.checkpoint import Checkpoint, Weight
from kvant.checkpoint.weights import rotary_row_order
from kvant.engine.kv_blocks import KvBlocks
from kvant.engine.plan import WeightSource, as_vector, lower
from kvant.engine.session import Engine
from kvant.errors import InputError, NotEnoughMemoryError, UnsupportedError, UsageError
from kvant.files.source import quote
from kvant.files.tensor import StackedTensor, StoredTensor
from kvant.graph.find import output_head
from kvant.graph.ir import Node, WeightRef
from kvant.graph.ops import Moe
from kvant.packing import get

__all__ = ["KV_TYPES", "KvTypeName", "available_memory", "load_engine", "processors"]

KvTypeName = Literal["f16", "q8_0"]
KV_TYPES: dict[str, int] = {"f16": 0, "q8_0": 1}

_STEP_TOKENS = 512
"""Tokens that go through the layers at once: enough for products to run at full speed."""

_SPOOL_BYTES = 8 << 20
"""Bytes of a decoded tensor that are in memory at once."""

_KV_SHARE = 0.5
"""How much of the memory that the weights leave the cache takes unless told otherwise."""

Progress = Callable[[int, int], None]


def load_engine(
    checkpoint: Checkpoint,
    *,
    threads: int | None = None,
    kv_tokens: int | None = None,
    kv_type: KvTypeName = "f16",
    memory_limit: int | None = None,
    resident: bool = True,
    step_tokens: int = _STEP_TOKENS,
    progress: Progress | None = None,
) -> Engine:
    """Load a model for running.

    Weights are read once, by positioned reads, into panels of sixteen interleaved rows: exactly
    as many bits as in the file, private to the process.

    Args:
        checkpoint: an unquantised folder, or a GGUF file of any packings.
        threads: by default one for each processor this process may use.
        kv_tokens: tokens of all sequences together that the cache holds; by default as many as the
            model's context, or what half of the free memory takes, if that is less. Models with
            two sets of rope factors use those for long texts where it holds more than they were
            first trained for.
        kv_type: how keys and values are kept: ``"f16"``, or ``"q8_0"`` in about half the memory.
        memory_limit: most bytes for weights, cache and scratch; by default what is free.
        resident: False leaves the weights in the file and builds panels as they are used: slow,
            but for models that are larger than memory.
        step_tokens: tokens that go through the layers at once.
        progress: called with weight bytes read and bytes in all.

    Raises:
        NotEnoughMemoryError: said before anything is loaded, with what would fit.
        UsageError: there is no such ``kv_type``.
        UnsupportedError: a weight's storage type has no kernels.
        InputError: a file cannot be read or ends early.
        DataError: NaN or infinity in a norm or bias.
    """
    if kv_type not in KV_TYPES:
        raise UsageError(f"kv_type should be one of {', '.join(KV_TYPES)}, got {kv_type!r}.")
    _check_types(checkpoint)
    step = _context(checkpoint)  # of an encoder, because its texts cannot be cut
    if not checkpoint.graph.encodes:
        step = max(8, min(step_tokens, step))
    plan = _core.Plan(_thread_count(threads), step)
    with _Loader(checkpoint, plan, resident).open() as loader:
        longest = min(kv_tokens or _context(checkpoint), _context(checkpoint))
        lowered = lower(checkpoint.graph, plan, loader.source(), KV_TYPES[kv_type], longest)
        budget = _Budget.of(checkpoint, plan, loader, kv_type, memory_limit)
        blocks = budget.blocks(kv_tokens)
        try:
            loader.read(progress)
            plan.finish(blocks, lowered.stream, lowered.result, lowered.layers)
        except MemoryError:
            raise NotEnoughMemoryError(
                f"{checkpoint.path}: the system does not give the {_mb(budget.total(blocks))} that "
                "the model and its cache take. Raise this process's limit, use a smaller cache, or "
                "quantise the model to fewer bits."
            ) from None
    return Engine(
        plan, lowered, KvBlocks(blocks), name=str(checkpoint.path), context=_context(checkpoint)
    )


def _check_types(checkpoint: Checkpoint) -> None:
    """Every matrix, before the first is touched."""
    for name, weight in checkpoint.weights.items():
        stored = weight.stored
        if len(weight.shape) >= 2 and not _core.has_panels(stored.type.id):
            raise UnsupportedError(
                f"{stored.path}: tensor {quote(name)} is stored as {stored.type.name}, "
                "which the engine cannot run. Quantise it to a packing that `kvant formats` lists."
            )


def _context(checkpoint: Checkpoint) -> int:
    return checkpoint.config.max_position_embeddings


def _thread_count(threads: int | None) -> int:
    return processors() if threads is None else max(1, min(threads, 512))


def processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


class _Loader:
    """Adds weights to a plan as the lowering asks for them, then reads them."""

    def __init__(self, checkpoint: Checkpoint, plan: _core.Plan, resident: bool) -> None:
        self._checkpoint, self._plan, self._resident = checkpoint, plan, resident
        self._files: dict[Path, int] = {}
        self._spool: list[int] = []
        self._ids: dict[tuple[str, str], int] = {}
        self._matrices: list[tuple[str, _core.Weight]] = []
        self._made = 0  # bytes of panels that are filled already

    @contextmanager
    def open(self) -> Iterator[_Loader]:
        """Keep files open while weights are added; the core keeps its own descriptors."""
        try:
            yield self
        finally:
            for fd in (*self._files.values(), *self._spool):
                os.close(fd)
            self._files.clear()
            self._spool.clear()

    def source(self) -> WeightSource:
        return WeightSource(self._matrix, self._exact, self._vector, self._table)

    @property
    def panel_bytes(self) -> int:
        return self._made + sum(w.memory for _, w in self._matrices)

    def read(self, progress: Progress | None) -> None:
        """Fill the panels: all in one call, or in pieces where someone wants to see progress."""
        total, done = self.panel_bytes, self._made
        step = 1 if progress is not None else max(1, len(self._matrices))
        for start in range(0, len(self._matrices), step):
            if progress is not None:
                progress(done, total)
            piece = self._matrices[start : start + step]
            bad = self._plan.load([weight for _, weight in piece])
            if bad >= 0:
                raise InputError(
                    f"{self._checkpoint.path}: the file ends inside tensor {quote(piece[bad][0])}, "
                    "or cannot be read there. Check the disk or fetch the file again."
                )
            done += sum(weight.memory for _, weight in piece)
        if progress is not None:
            progress(total, total)

    def _matrix(self, ref: WeightRef) -> int:
        if ("matrix", ref.name) not in self._ids:
            weight = self._checkpoint.weights[ref.name]
            order: list[int] = []
            if weight.rotary is not None and weight.rotary.order != "half":
                rows, heads = weight.stored.rows, weight.rotary.heads
                order = rotary_row_order(rows, heads, weight.rotary.order, "half").tolist()
            stack = weight.shape[0] if len(weight.shape) == 3 else 1
            panels = _core.Weight(self._rows(weight), order, self._resident, stack)
            self._matrices.append((ref.name, panels))
            self._ids["matrix", ref.name] = self._plan.add_weight(panels)
        return self._ids["matrix", ref.name]

    def _exact(self, ref: WeightRef) -> int:
        if ("exact", ref.name) not in self._ids:
            values = np.ascontiguousarray(self._checkpoint.weights[ref.name].read_f32())
            rows = values.view(np.uint8).reshape(len(values), -1)
            panels = _core.Weight.of_array(get("F32").storage.id, values.shape[1], rows)
            self._made += panels.memory
            self._ids["exact", ref.name] = self._plan.add_weight(panels)
        return self._ids["exact", ref.name]

    def _vector(self, ref: WeightRef) -> int:
        if ("vector", ref.name) not in self._ids:
            values = self._checkpoint.weights[ref.name].read_f32()
            self._ids["vector", ref.name] = self._plan.add_vector(as_vector(values))
        return self._ids["vector", ref.name]

    def _table(self, ref: WeightRef) -> int:
        weight = self._checkpoint.weights[ref.name]
        return self._plan.add_table(self._rows(weight))

    def _rows(self, weight: Weight) -> _core.FileRows:
        stored = weight.stored
        parts = stored.parts if isinstance(stored, StackedTensor) else (stored,)
        places = [
            (self._file(part.path), part.offset) if part.in_place else (self._spooled(part), 0)
            for part in parts
        ]
        return _core.FileRows(places, stored.type.id, stored.rows, stored.row_length)

    def _spooled(self, tensor: StoredTensor) -> int:
        """A file without a name that holds a tensor's rows as they are read, for the core."""
        step = max(1, _SPOOL_BYTES // tensor.row_bytes)
        fd = self._file(tensor.path)
        with tempfile.TemporaryFile() as file:
            for start in range(0, tensor.rows, step):
                file.write(tensor.read_rows(fd, start, min(start + step, tensor.rows)).data)
            file.flush()
            self._spool.append(os.dup(file.fileno()))
        return self._spool[-1]

    def _file(self, path: Path) -> int:
        if path not in self._files:
            try:
                self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise InputError(f"{path}: cannot be opened: {error.strerror}.") from None
        return self._files[path]


@dataclass(frozen=True, slots=True)
class _Budget:
    """What the weights take and what is left, in bytes."""

    name: str
    context: int
    weights: int
    scratch: int
    limit: int
    block: int  # of all layers together

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        plan: _core.Plan,
        loader: _Loader,
        kv_type: str,
        limit: int | None,
    ) -> _Budget:
        block = sum(
            _core.kv_block_bytes(s.heads, s.head_dim, KV_TYPES[kv_type])
            for s in checkpoint.graph.states
        )
        graph = checkpoint.graph
        end = len(graph.nodes) + 1
        if not graph.encodes:
            end = output_head(graph)[0].result.id  # logits are the caller's
        widest = max(n.result.width for n in graph.nodes if n.result.id < end)
        scratch = plan.most_tokens * widest * 16 + plan.threads * (2 << 20)  # buffers, about
        scratch += plan.most_tokens * max(map(_expert_bytes, checkpoint.graph.nodes))
        return cls(
            str(checkpoint.path),
            _context(checkpoint),
            loader.panel_bytes,
            scratch,
            available_memory() if limit is None else limit,
            block,
        )

    def total(self, blocks: int) -> int:
        """Bytes of everything, with so many blocks."""
        return self.weights + self.scratch + blocks * self.block

    def blocks(self, kv_tokens: int | None) -> int:
        """Blocks of the cache."""
        per_block = _core.KV_BLOCK
        room = self.limit - self.weights - self.scratch
        least = self.weights + self.scratch + self.block
        if room < self.block:
            raise NotEnoughMemoryError(
                f"{self.name}: its weights take {_mb(self.weights)}, and a step "
                f"{_mb(self.scratch)} more; {_mb(self.limit)} are free, at least {_mb(least)} are "
                "needed. Quantise it to fewer bits, or close other programs."
            )
        if kv_tokens is None:
            fitting = int(room * _KV_SHARE) // self.block
            return max(1, min(-(-self.context // per_block), fitting))
        blocks = max(1, -(-kv_tokens // per_block))
        if blocks * self.block > room:
            raise NotEnoughMemoryError(
                f"{self.name}: a cache of {kv_tokens:,} tokens takes {_mb(blocks * self.block)} "
                f"beside {_mb(self.weights + self.scratch)} for weights and a step; "
                f"{_mb(self.limit)} are free. {room // self.block * per_block:,} tokens would fit."
            )
        return blocks


def _expert_bytes(node: Node) -> int:
    """Room for what a token's experts read and give, about."""
    if not isinstance(node.op, Moe):
        return 0
    _, width, inner = node.op.down.shape
    return node.op.used * (inner * 10 + width * 6)


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def available_memory() -> int:
    """Bytes this process may still take: what the system has free, or its control group's rest."""
    free = _meminfo("MemAvailable:")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        if limit != "max":
            free = min(free, max(0, int(limit) - used))
    except (OSError, ValueError):
        pass  # no control groups, or none with a limit
    return free


def _meminfo(key: str) -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(key))
    except (OSError, StopIteration, ValueError):
        pages: int = os.sysconf("SC_PHYS_PAGES")
        return int(np.int64(pages) * os.sysconf("SC_PAGE_SIZE"))
