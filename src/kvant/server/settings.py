"""What a server is told when it starts, in one object."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kvant.engine.load import KvTypeName
from kvant.registry.store import kvant_home
from kvant.server import DEFAULT_PORT, MAX_BODY

__all__ = ["Settings", "Tls"]


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate with its chain and its key, as PEM files."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a server serves. Sizes in bytes, times in seconds.

    Attributes:
        host: address to listen on.
        port: 0 takes a free one.
        models: names or paths to load at the start; paths are served under their file's name, or
            as ``NAME=PATH``.
        max_memory: bytes that all models together may take; None for nine tenths of what is free
            at the start.
        queue: most requests that wait for one model.
        parallel: most requests of one model that run at once.
        per_user: most requests one user may have in work and waiting; None for no bound of its own.
        keep_alive: seconds an unused model stays loaded; negative for ever.
        context: most tokens of a prompt and its answer; None for the model's own.
        kv_tokens: tokens that the cache of a model holds; None for as many as fit well.
        kv_type: how keys and values are kept.
        threads: processors a model uses; None for all.
        engine: ``auto``, ``native``, ``vllm``, ``mlx`` or ``onnxruntime-genai``.
        tensor_parallel: passed to vLLM.
        draft: a small model that guesses ahead, or ``ngram`` to guess from the text itself; None
            for no guessing.
        deadline: most seconds a request may take.
        drain: seconds that answers under way get to finish when the server is told to stop.
        body: most bytes of a request.
        body_seconds: most seconds until a request has been received.
        requests_per_minute: of one user; None for no bound.
        keys_required: whether every request needs a key; None: where the address is not loopback.
        open_to_all: listening on other addresses without keys is meant.
        cors: origins whose pages may read answers.
        tls: for HTTPS.
        folder: keys and the audit log.
        audit_prompts: whether prompts are written into the audit log too.
        audit: whether there is an audit log at all.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    models: tuple[str, ...] = ()
    max_memory: int | None = None
    queue: int = 512
    parallel: int = 64
    per_user: int | None = None
    keep_alive: float = 300.0
    context: int | None = None
    kv_tokens: int | None = None
    kv_type: KvTypeName = "f16"
    threads: int | None = None
    engine: str = "auto"
    tensor_parallel: int | None = None
    draft: str | None = "ngram"
    deadline: float = 600.0
    drain: float = 30.0
    body: int = MAX_BODY
    body_seconds: float = 30.0
    requests_per_minute: int | None = None
    keys_required: bool | None = None
    open_to_all: bool = False
    cors: tuple[str, ...] = ()
    tls: Tls | None = None
    folder: Path = field(default_factory=kvant_home)
    audit: bool = True
    audit_prompts: bool = False

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        import ipaddress

        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def needs_keys(self) -> bool:
        """Whether every request must bring a key."""
        if self.keys_required is not None:
            return self.keys_required
        return not self.loopback and not self.open_to_all
