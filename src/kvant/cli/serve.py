"""``kvant serve``: models over HTTP."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvant.cli import show
from kvant.cli.options import Commands, byte_size, positive
from kvant.errors import UsageError
from kvant.server import DEFAULT_PORT, MAX_BODY

__all__ = ["add", "seconds"]

_DESCRIPTION = """\
Serve models behind the APIs of OpenAI, Ollama and Anthropic. Models are loaded when they are asked
for, run many requests at once, and go when nobody uses them. Ctrl-C lets answers finish.
"""


def seconds(text: str) -> float:
    """``90``, ``5m``, ``24h``; ``-1`` or ``forever`` for ever, in seconds."""
    if text in ("forever", "-1"):
        return -1.0
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    try:
        value = float(number) * unit
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e10:
        raise argparse.ArgumentTypeError(f"expected a time such as 90, 5m or 24h, got {text!r}")
    return value


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "serve", help="serve models over HTTP, to many at once", description=_DESCRIPTION
    )
    parser.add_argument("--host", default="127.0.0.1", help="address (default: this machine only)")
    parser.add_argument(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        help=f"default: {DEFAULT_PORT}; 0 for a free one",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME",
        help="load at the start: a name, a path, or NAME=PATH; repeatable",
    )
    _add_capacity(parser)
    _add_engine(parser)
    _add_access(parser)
    parser.set_defaults(run=_run)


def _add_capacity(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how much")
    group.add_argument(
        "--max-memory", type=byte_size, metavar="SIZE", help="of all models (default: what is free)"
    )
    group.add_argument(
        "--queue", type=int, default=512, metavar="N", help="requests that may wait (default: 512)"
    )
    group.add_argument(
        "--parallel", type=positive, default=64, metavar="N", help="that run at once (default: 64)"
    )
    group.add_argument(
        "--per-user", type=positive, metavar="N", help="requests of one user at a time"
    )
    group.add_argument(
        "--rate", type=positive, metavar="N", help="requests of one user in a minute"
    )
    group.add_argument(
        "--keep-alive",
        type=seconds,
        default=300.0,
        metavar="TIME",
        help="an unused model stays so long (default: 5m; -1 for ever)",
    )
    group.add_argument(
        "--context", type=positive, metavar="N", help="tokens of a prompt and its answer together"
    )
    group.add_argument(
        "--kv-tokens", type=positive, metavar="N", help="tokens that a model's cache holds"
    )
    group.add_argument("--kv", choices=("f16", "q8_0"), default="f16", help="(default: f16)")
    group.add_argument("--threads", type=positive, metavar="N", help="processors (default: all)")
    group.add_argument(
        "--timeout",
        type=seconds,
        default=600.0,
        metavar="TIME",
        help="most a request may take (default: 10m)",
    )
    group.add_argument(
        "--drain",
        type=seconds,
        default=30.0,
        metavar="TIME",
        help="answers get so long to finish when the server is stopped (default: 30)",
    )
    group.add_argument(
        "--max-body", type=byte_size, default=MAX_BODY, metavar="SIZE", help="of a request"
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--engine",
        choices=("auto", "native", "vllm", "mlx", "onnxruntime-genai"),
        default="auto",
        help="what runs the models (default: auto; `kvant doctor MODEL` says which and why)",
    )
    group.add_argument(
        "--draft",
        default="ngram",
        metavar="MODEL",
        help="what guesses ahead: ngram (from the text itself), the path of a small model of the "
        "same vocabulary, or none (default: ngram; it stops by itself where it does not pay)",
    )
    group.add_argument(
        "--tensor-parallel-size", type=positive, metavar="N", help="GPUs of a model, for vLLM"
    )


def _add_access(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("access")
    keys = group.add_mutually_exclusive_group()
    keys.add_argument(
        "--api-key-required", action="store_true", help="ask for keys on this machine too"
    )
    keys.add_argument(
        "--no-keys", action="store_true", help="let everybody in who reaches the address"
    )
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate and chain, PEM")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="its key, PEM")
    group.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="pages that may use it"
    )
    group.add_argument("--no-audit", action="store_true", help="write no audit log")
    group.add_argument(
        "--audit-prompts", action="store_true", help="write prompts into the audit log too"
    )
    group.add_argument("--log-json", action="store_true", help="log as JSON")


def _run(arguments: argparse.Namespace) -> int:
    from kvant.api.models import store
    from kvant.server.serve import serve
    from kvant.server.settings import Settings, Tls

    a = arguments
    if (a.tls_cert is None) != (a.tls_key is None):
        raise UsageError("--tls-cert and --tls-key go together. Give both.")
    for file in (a.tls_cert, a.tls_key):
        if file is not None and not file.is_file():
            raise UsageError(f"{file}: no such file; expected a PEM file.")
    if not 0 <= a.port < 65536 or a.queue < 0:
        raise UsageError(f"--port is from 0 to 65535 and --queue from 0, got {a.port}, {a.queue}.")
    settings = Settings(
        host=a.host,
        port=a.port,
        models=tuple(a.model),
        max_memory=a.max_memory,
        queue=a.queue,
        parallel=a.parallel,
        per_user=a.per_user,
        keep_alive=a.keep_alive,
        context=a.context,
        kv_tokens=a.kv_tokens,
        kv_type=a.kv,
        threads=a.threads,
        engine=a.engine,
        tensor_parallel=a.tensor_parallel_size,
        draft=None if a.draft == "none" else a.draft,
        deadline=a.timeout if a.timeout > 0 else 1e9,
        drain=max(0.0, a.drain),
        body=a.max_body,
        requests_per_minute=a.rate,
        keys_required=True if a.api_key_required else False if a.no_keys else None,
        open_to_all=a.no_keys,
        cors=tuple(a.cors),
        tls=None if a.tls_cert is None else Tls(a.tls_cert, a.tls_key),
        audit=not a.no_audit,
        audit_prompts=a.audit_prompts,
    )
    serve(settings, store(), lambda url: show.note(f"kvant serves on {url}"), json_log=a.log_json)
    return 0
