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
    from kvant.checkpoint import Checkpoint
    from kvant.engine import Engine
    from kvant.engine.load import KvTypeName
    from kvant.tokenizer.build import Tokenizer

__all__ = ["main"]

_STEP_TOKENS = 512

Message = dict[str, Any]


def _serve(link: Link) -> None:
    order = link.hear()
    load = _native if order["engine"] == "native" else _genai
    found = load(link, order)
    if found is None:
        return
    loaded, memory = found
    given = order["defaults"]
    defaults = Defaults(**{**given, "stop": tuple(given["stop"])})
    worker = Worker(link, loaded, defaults)
    link.say(
        {
            "is": "loaded",
            "context": loaded.context,
            "memory": memory,
            "template": worker.template,
        }
    )
    threading.Thread(target=worker.listen, daemon=True, name="listen").start()
    worker.run()


def _plan(link: Link, **opened: Any) -> Message | None:
    """Say what a model takes; what may be taken, or None where it is not loaded."""
    link.say({"is": "opened", **opened})
    plan = link.hear()
    return plan if plan["do"] == "load" else None


def _takes(checkpoint: Checkpoint, kv_type: KvTypeName) -> tuple[int, float]:
    """Bytes of a model's weights, and of a token of its cache."""
    from kvant import _core
    from kvant.engine.load import KV_TYPES

    block = sum(
        _core.kv_block_bytes(s.heads, s.head_dim, KV_TYPES[kv_type])
        for s in checkpoint.graph.states
    )
    weights = sum(w.stored.nbytes for w in checkpoint.weights.values())
    return weights, block / _core.KV_BLOCK


def _native(link: Link, order: Message) -> tuple[Loaded, int] | None:
    """The model and the bytes it takes."""
    from kvant.api.model import Model
    from kvant.api.source import open_source, threads_or_default, tokenizer_of
    from kvant.engine.load import load_engine

    checkpoint = open_source(order["path"], order["adapter"])
    draft = None
    if order["draft"] not in (None, "ngram") and not checkpoint.graph.encodes:
        draft = open_source(order["draft"])
    weights, token_bytes = _takes(checkpoint, order["kv_type"])
    if draft is not None:
        more = _takes(draft, "f16")
        weights, token_bytes = weights + more[0], token_bytes + more[1]
    plan = _plan(
        link,
        weights=weights,
        token_bytes=token_bytes,
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
    batch, memory = None, engine.memory.total
    grammars = Grammars(tokenizer, engine.vocab_size)
    if not engine.encodes:
        most = max(_STEP_TOKENS, order["parallel"])
        # The queue is the server's; what comes here has been admitted.
        limits = Limits(order["parallel"], order["parallel"] + order["queue"] + 64, most)
        speculation = Speculator(Lookup()) if order["draft"] == "ngram" else None
        if draft is not None:
            small = _small(draft, order, tokenizer, plan["kv_tokens"])
            memory += small.memory.total
            speculation = Speculator(DraftModel(small, engine.vocab_size))
        batch = Batch(
            engine,
            tokenizer,
            context=model.context,
            limits=limits,
            speculation=speculation,
            grammars=grammars,
        )
    sampling, embed = model.default_sampling, model.embed_tokens
    return Loaded(tokenizer, sampling, model.context, batch, grammars, embed), memory


def _small(draft: Checkpoint, order: Message, tokenizer: Tokenizer, kv_tokens: int) -> Engine:
    """The engine of a draft model."""
    from kvant.api.source import threads_or_default, tokenizer_of
    from kvant.engine.load import load_engine

    check_vocabulary(tokenizer, tokenizer_of(draft))
    longest = draft.config.max_position_embeddings
    return load_engine(
        draft, threads=threads_or_default(order["threads"]), kv_tokens=min(kv_tokens, 4 * longest)
    )


def _genai(link: Link, order: Message) -> tuple[Loaded, int] | None:
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
    return Loaded(tokenizer, FIELD_DEFAULTS, context, batch), folder.weights


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
