"""A model's process: ``python -m kvant.server.worker``, with a socket as standard input.

It is told which model, says what it will take, is told how much of that it may, loads it, and runs
requests until the server is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvant.engine.batch import Batch, Limits
from kvant.engine.constrain import Grammars
from kvant.engine.speculative import DraftModel, Lookup, Speculator, check_vocabulary
from kvant.errors import KvantError, NotEnoughMemoryError, UnsupportedError
from kvant.server import wire
from kvant.server.prepare import Defaults
from kvant.server.work import Link, Loaded, Worker

if TYPE_CHECKING:
    from kvant.engine import Engine
    from kvant.tokenizer.build import Tokenizer

__all__ = ["main"]

_STEP_TOKENS = 512

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Size:
    """What was loaded, in bytes and tokens."""

    memory: int
    kv_tokens: int
    describe: str


def _serve(link: Link) -> None:
    order = link.hear()
    load = _native if order["engine"] == "native" else _genai
    found = load(link, order)
    if found is None:
        return
    loaded, size = found
    given = order["defaults"]
    defaults = Defaults(**{**given, "stop": tuple(given["stop"])})
    worker = Worker(link, loaded, defaults)
    link.say(
        {
            "is": "loaded",
            "context": loaded.context,
            "memory": size.memory,
            "kv_tokens": size.kv_tokens,
            "template": worker.template,
            "describe": size.describe,
        }
    )
    threading.Thread(target=worker.listen, daemon=True, name="listen").start()
    worker.run()


def _plan(link: Link, **opened: Any) -> Message | None:
    """Say what a model takes; what may be taken, or None where it is not loaded."""
    link.say({"is": "opened", **opened})
    plan = link.hear()
    return plan if plan["do"] == "load" else None


def _native(link: Link, order: Message) -> tuple[Loaded, _Size] | None:
    from kvant import _core
    from kvant.api.model import Model
    from kvant.api.source import open_source, threads_or_default, tokenizer_of
    from kvant.engine.load import KV_TYPES, load_engine

    checkpoint = open_source(order["path"], order["adapter"])
    block = sum(
        _core.kv_block_bytes(s.heads, s.head_dim, KV_TYPES[order["kv_type"]])
        for s in checkpoint.graph.states
    )
    plan = _plan(
        link,
        weights=sum(w.stored.nbytes for w in checkpoint.weights.values()),
        token_bytes=block / _core.KV_BLOCK,
        context=checkpoint.config.max_position_embeddings,
        encodes=checkpoint.graph.encodes,
    )
    if plan is None:
        return None
    with ThreadPoolExecutor(1) as beside:
        building = beside.submit(tokenizer_of, checkpoint)
        engine = load_engine(
            checkpoint,
            threads=threads_or_default(order["threads"]),
            kv_tokens=plan["kv_tokens"],
            kv_type=order["kv_type"],
        )
        tokenizer = building.result()
    model = Model(checkpoint, engine, tokenizer, context=plan["context"])
    batch = None
    grammars = Grammars(tokenizer, engine.vocab_size)
    if not engine.encodes:
        most = max(_STEP_TOKENS, order["parallel"])
        # The queue is the server's; what comes here has been admitted.
        limits = Limits(order["parallel"], order["parallel"] + order["queue"] + 64, most)
        batch = Batch(
            engine,
            tokenizer,
            context=model.context,
            limits=limits,
            speculation=_speculator(order, engine, tokenizer, plan["kv_tokens"]),
            grammars=grammars,
        )
    size = _Size(engine.memory.total, engine.kv.capacity_tokens, model.describe())
    sampling, embed = model.default_sampling, model.embed_tokens
    return Loaded(tokenizer, sampling, model.context, batch, grammars, embed), size


def _speculator(
    order: Message, engine: Engine, tokenizer: Tokenizer, kv_tokens: int
) -> Speculator | None:
    draft = order["draft"]
    if draft is None:
        return None
    if draft == "ngram":
        return Speculator(Lookup())
    from kvant.api.source import open_source, threads_or_default, tokenizer_of
    from kvant.engine.load import load_engine

    checkpoint = open_source(draft)
    check_vocabulary(tokenizer, tokenizer_of(checkpoint))
    longest = checkpoint.config.max_position_embeddings
    small = load_engine(
        checkpoint,
        threads=threads_or_default(order["threads"]),
        kv_tokens=min(kv_tokens, 4 * longest),
    )
    return Speculator(DraftModel(small, engine.vocab_size))


def _genai(link: Link, order: Message) -> tuple[Loaded, _Size] | None:
    from kvant.api.sampling_defaults import FIELD_DEFAULTS
    from kvant.runtimes.onnxruntime_genai import GenaiBatch, GenaiFolder

    folder = GenaiFolder.open(Path(order["path"]))
    if order["adapter"] is not None:
        raise UnsupportedError(f"{folder.path}: --engine onnxruntime-genai takes no adapters.")
    plan = _plan(
        link,
        weights=folder.weights,
        token_bytes=folder.token_bytes,
        context=folder.context,
        encodes=False,
    )
    if plan is None:
        return None
    tokenizer = folder.tokenizer()
    context = min(plan["context"], folder.context)
    batch = GenaiBatch(folder, tokenizer, context=context, running=order["parallel"])
    size = _Size(folder.weights, context, f"ONNX Runtime GenAI, context of {context:,} tokens")
    return Loaded(tokenizer, FIELD_DEFAULTS, context, batch), size


def main() -> int:
    """Entry point."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides when this ends
    link = Link(socket.socket(fileno=os.dup(0)))
    try:
        _serve(link)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0
    except KvantError as error:
        link.say({"is": "failed", "error": wire.error_to(error)})
        return 1
    except MemoryError:
        lost = NotEnoughMemoryError("The system gave the model's process no more memory.")
        link.say({"is": "failed", "error": wire.error_to(lost)})
        return 1
    except Exception:
        traceback.print_exc()
        os._exit(70)  # threads and weights are not wound up in a process that failed
    return 0


if __name__ == "__main__":
    sys.exit(main())
