"""What goes wrong is said, and said before harm is done."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from engine_models import damage, model, write_mixture

from kvant import _core
from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.engine import Engine, load, load_engine
from kvant.errors import (
    ContextError,
    DataError,
    FileFormatError,
    InputError,
    NotEnoughMemoryError,
    UnsupportedError,
    UsageError,
)
from kvant.files.gguf import TensorSpec, header_bytes
from kvant.packing import get
from kvant.packing.types import BY_NAME


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return model(tmp_path_factory.mktemp("errors"), "llama")


@pytest.fixture(scope="module")
def engine(source: Checkpoint) -> Engine:
    return load_engine(source, threads=2, kv_tokens=1024)


# ---- steps --------------------------------------------------------------------------------------


def test_a_text_longer_than_the_context(engine: Engine) -> None:
    with engine.sequence() as sequence:
        with pytest.raises(ContextError, match=r"takes 257 tokens, the model's context is 256"):
            engine.step([(sequence, [1] * 257)])
        engine.step([(sequence, [1] * 250)])
        with pytest.raises(ContextError) as caught:
            engine.step([(sequence, [1] * 7)])
        assert (caught.value.needed, caught.value.context) == (257, 256)
        assert sequence.length == 250
        engine.step([(sequence, [1] * 6)])


@pytest.mark.parametrize(
    "tokens", [[-1], [0, 384], [2**31], np.array([2**63], np.uint64), [1.0], [], [[1]], [True]]
)
def test_tokens_there_are_not(engine: Engine, tokens: list[int]) -> None:
    with engine.sequence() as sequence:
        with pytest.raises(UsageError, match=r"Token ids should be from 0 to 383|Expected token"):
            engine.step([(sequence, tokens)])
        with pytest.raises(UsageError):
            engine.embed(tokens)
        assert (sequence.length, sequence.block_count) == (0, 0)
    with pytest.raises(UsageError, match="nothing to do"):
        engine.step([])


def test_the_core_refuses_what_python_should_never_ask(engine: Engine) -> None:
    plan = engine._plan
    tokens, rows = np.zeros(3, np.int32), np.empty(0, np.int32)
    entry = np.array([[0, 3, 0]], np.int64)
    table = np.zeros((1, 1), np.int32)

    def step(
        tokens: np.ndarray = tokens,
        entries: np.ndarray = entry,
        tables: np.ndarray = table,
        rows: np.ndarray = rows,
    ) -> None:
        plan.step(tokens, entries, tables, rows, -1, 2, None, None, None, None, [])

    step()
    wrong_entries = ([[0, 2, 0]], [[1, 2, 0]], [[0, 3, -1]], [[0, 3, 30]], [[0, 0, 0], [0, 3, 0]])
    for wrong in wrong_entries:
        with pytest.raises(ValueError, match=r"entries|block table"):
            step(entries=np.array(wrong, np.int64))
    for block in (-1, engine.kv.count):
        with pytest.raises(ValueError, match="a block there is not"):
            step(tables=np.full((1, 1), block, np.int32))
    for token in (-1, 384):
        with pytest.raises(ValueError, match="a token there is not"):
            step(tokens=np.full(3, token, np.int32))
    for wanted in ([0, 0], [2, 1], [3], [-1]):
        with pytest.raises(ValueError, match="rows ascend"):
            step(rows=np.array(wanted, np.int32))
    many = np.zeros(plan.most_tokens + 1, np.int32)
    with pytest.raises(ValueError, match="planned number of tokens"):
        step(many, np.array([[0, len(many), 0]], np.int64), np.zeros((1, 99), np.int32))
    with pytest.raises(TypeError):  # a copy would be made silently
        step(tokens=tokens.astype(np.int64))


# ---- numbers that are none ----------------------------------------------------------------------

PLACES = ("token_embd", "output", "blk.0.attn_q", "blk.0.attn_v", "blk.1.ffn_up", "blk.1.ffn_down")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("others", ["F32", "Q8_0", "Q4_K"])
@pytest.mark.parametrize("place", PLACES)
def test_weights_that_are_not_finite(
    place: str, others: str, bad: float, source: Checkpoint, tmp_path: Path
) -> None:
    """Beside quantised weights too, whose 8-bit activations could not say so."""
    name = f"{place}.weight"
    file = tmp_path / "m.gguf"
    write_mixture(file, source, lambda n: "F32" if n == name else others)
    damage(file, name, bad)
    engine = load_engine(open_checkpoint(file), threads=2, kv_tokens=256)
    # Every token of the embedding is read, so the bad one is.
    work = [(engine.sequence(), np.arange(128)), (engine.sequence(), np.arange(128, 256))]
    with pytest.raises(DataError, match=r"NaN or infinity among its predictions, expected finite"):
        engine.step(work, logits="all")
    assert [(s.length, s.block_count) for s, _ in work] == [(0, 0), (0, 0)]


@pytest.mark.parametrize("name", ["output_norm.weight", "blk.1.ffn_norm.weight"])
def test_norms_that_are_not_finite(name: str, source: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    write_mixture(file, source, "Q8_0")
    damage(file, name, np.nan)
    with pytest.raises(DataError, match=name):
        load_engine(open_checkpoint(file), threads=1)


def test_scales_that_are_not_finite(source: Checkpoint, tmp_path: Path) -> None:
    def spoil(name: str, packed: np.ndarray) -> None:
        if name == "blk.0.ffn_gate.weight":
            packed[7, :2] = (0x00, 0x7E)  # a half's NaN

    file = write_mixture(tmp_path / "m.gguf", source, "Q4_0", spoil)
    engine = load_engine(file, threads=1, kv_tokens=64)
    with engine.sequence() as sequence, pytest.raises(DataError, match="kvant verify"):
        engine.step([(sequence, [1, 2, 3])])


def test_the_head_alone_checks_too(engine: Engine) -> None:
    hidden = np.zeros((3, engine.hidden_size), np.float32)
    hidden[1, 5] = np.nan
    with pytest.raises(DataError):
        engine.head(hidden)
    hidden[1, 5] = 0
    assert not engine.head(hidden).any()


# ---- files that change --------------------------------------------------------------------------


def test_a_file_cut_short_after_it_was_opened(source: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    for resident in (True, False):
        opened = write_mixture(file, source, "Q8_0")
        last = max(opened.weights.values(), key=lambda w: w.stored.offset)
        os.truncate(file, last.stored.offset - 100)
        if resident:
            with pytest.raises(InputError, match=r"the file ends inside tensor '.*', or cannot"):
                load_engine(opened, threads=2)
            continue
        with pytest.raises(InputError):
            run(load_engine(opened, threads=2, resident=False))


def run(engine: Engine) -> np.ndarray:
    with engine.sequence() as sequence:
        try:
            return engine.step([(sequence, list(range(40)))], logits="all")
        finally:
            assert sequence.length in (0, 40)


@pytest.mark.parametrize("packing", ["F32", "Q4_K"])
@pytest.mark.parametrize("resident", [False, True])
def test_a_file_cut_short_while_in_use(
    packing: str, resident: bool, source: Checkpoint, tmp_path: Path
) -> None:
    """At any place; the process goes on, and so does the engine when the file is whole again."""
    file = tmp_path / "m.gguf"
    opened = write_mixture(file, source, packing)
    content = file.read_bytes()
    engine = load_engine(opened, threads=2, kv_tokens=256, resident=resident)
    expected = run(engine)
    embedding = opened.weights["token_embd.weight"].stored
    first = min(w.stored.offset for w in opened.weights.values())
    for size in (0, first, embedding.offset + 40, len(content) // 2, len(content) - 20_000):
        os.truncate(file, size)
        if resident and size >= embedding.offset + 40 * embedding.row_bytes:
            assert np.array_equal(run(engine), expected)  # only the embedding is read
        else:
            with pytest.raises(FileFormatError, match="was cut short while in use"):
                run(engine)
        file.write_bytes(content)
    assert np.array_equal(run(engine), expected)


def test_a_file_replaced_while_in_use(source: Checkpoint, tmp_path: Path) -> None:
    """The engine keeps the file it opened."""
    file = tmp_path / "m.gguf"
    engine = load_engine(write_mixture(file, source, "Q8_0"), threads=1, resident=False)
    expected = run(engine)
    other = tmp_path / "other"
    other.write_bytes(b"something else")
    other.replace(file)
    assert np.array_equal(run(engine), expected)


def test_a_file_that_is_gone(source: Checkpoint, tmp_path: Path) -> None:
    opened = write_mixture(tmp_path / "m.gguf", source, "Q8_0")
    (tmp_path / "m.gguf").unlink()
    with pytest.raises(InputError, match="cannot be opened"):
        load_engine(opened, threads=1)


def test_descriptors_are_given_back(source: Checkpoint) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for resident in (True, False):
        run(load_engine(source, threads=2, resident=resident, kv_tokens=64))
    assert len(os.listdir("/proc/self/fd")) == before


# ---- memory -------------------------------------------------------------------------------------


@pytest.fixture
def _no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(load._Loader, "read", read)


@pytest.mark.usefixtures("_no_reading")
def test_too_little_memory(source: Checkpoint) -> None:
    expected = r"its weights take \d+ MB, and a step \d+ MB more; 5 MB may be used, at least \d+ MB"
    with pytest.raises(NotEnoughMemoryError, match=expected):
        load_engine(source, threads=1, memory_limit=5_000_000)
    with pytest.raises(
        NotEnoughMemoryError, match=r"a cache of 1,000,000 tokens takes .* [\d,]+ tokens would fit"
    ):
        load_engine(source, threads=1, memory_limit=50_000_000, kv_tokens=1_000_000)


def test_what_the_message_says_would_fit_fits(source: Checkpoint) -> None:
    with pytest.raises(NotEnoughMemoryError) as caught:
        load_engine(source, threads=1, memory_limit=20_000_000, kv_tokens=10**6)
    fits = int(str(caught.value).split(" may be used. ")[1].split(" tokens")[0].replace(",", ""))
    engine = load_engine(source, threads=1, memory_limit=20_000_000, kv_tokens=fits)
    assert engine.kv.capacity_tokens == fits > 1000
    with pytest.raises(NotEnoughMemoryError):
        load_engine(source, threads=1, memory_limit=20_000_000, kv_tokens=fits + 1)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("packing", ["F32", "F16", "Q4_K", "Q8_0"])
@pytest.mark.parametrize("resident", [True, False])
def test_memory_stays_within_its_limit(
    packing: str, threads: int, resident: bool, source: Checkpoint, tmp_path: Path
) -> None:
    """What was counted before loading is no less than what is taken."""
    file = write_mixture(tmp_path / "m.gguf", source, packing)
    room = {"threads": threads, "resident": resident}
    least = next(
        limit for limit in range(2_000_000, 60_000_000, 500_000) if _loads(file, limit, **room)
    )
    engine = load_engine(file, memory_limit=least, **room)  # type: ignore[arg-type]
    assert engine.memory.total <= least


def _loads(file: Checkpoint, limit: int, **options: object) -> bool:
    try:
        load_engine(file, memory_limit=limit, **options)  # type: ignore[arg-type]
    except NotEnoughMemoryError:
        return False
    return True


def test_memory_is_what_it_says(source: Checkpoint, tmp_path: Path) -> None:
    file = write_mixture(tmp_path / "m.gguf", source, "Q4_K")
    engine = load_engine(file, threads=1, kv_tokens=100)
    packed = sum(
        w.stored.rows * get(w.stored.type.name).storage.row_bytes(w.stored.row_length)
        for name, w in file.weights.items()
        if len(w.shape) == 2 and name != "token_embd.weight"
    )
    # Panels have the bits of the file; each matrix is rounded up to whole cache lines.
    assert packed <= engine.memory.weights_bytes <= packed * 1.05
    # Two bytes for each of 2 layers' 128 keys and 128 values of 128 tokens.
    assert engine.memory.kv_bytes == 2 * 2 * 2 * 128 * 128
    eight = load_engine(file, threads=1, kv_tokens=100, kv_type="q8_0")
    assert eight.memory.kv_bytes < 0.6 * engine.memory.kv_bytes


def test_memory_the_system_refuses(source: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looked free may not be: somebody else's limit, or no overcommitting."""

    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(load._Loader, "read", refuse)
    with pytest.raises(NotEnoughMemoryError, match="the system does not give"):
        load_engine(source, threads=1)


# ---- types --------------------------------------------------------------------------------------


def test_a_storage_type_without_kernels(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before a single weight of the others is taken up."""
    opened = write_mixture(tmp_path / "m.gguf", source, {"output.weight": "Q6_K"})
    q6_k, made = BY_NAME["Q6_K"].id, []
    monkeypatch.setattr(_core, "has_panels", lambda type: type != q6_k)
    monkeypatch.setattr(_core, "Weight", lambda *given: made.append(given))
    with pytest.raises(UnsupportedError, match=r"'output.weight' is stored as Q6_K, which the"):
        load_engine(opened, threads=1)
    assert not made


def test_types_that_nothing_here_decodes(source: Checkpoint, tmp_path: Path) -> None:
    """Refused when the file is opened."""
    arch = source.architecture
    types = dict.fromkeys(source.weights, BY_NAME["F32"]) | {"output.weight": BY_NAME["Q8_K"]}
    specs = [TensorSpec(name, types[name], w.shape) for name, w in source.weights.items()]
    head, _ = header_bytes(arch.to_gguf(source.config), specs)
    file = tmp_path / "m.gguf"
    file.write_bytes(head)
    os.truncate(file, len(head) + 4 * sum(w.stored.elements for w in source.weights.values()))
    with pytest.raises(UnsupportedError, match=r"'output.weight' is of type 'Q8_K'"):
        open_checkpoint(file)


def test_a_cache_of_another_kind(source: Checkpoint) -> None:
    with pytest.raises(UsageError, match="kv_type should be one of f16, q8_0, got 'q4'"):
        load_engine(source, kv_type="q4")  # type: ignore[arg-type]
