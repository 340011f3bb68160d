"""GGUF files run by llama.cpp, from the xllamacpp wheel, by ctypes.

The wheel's extension module exports llama.cpp's C functions, but its Python side gives no logits.
The structs change between releases, so they are taken whole from llama.cpp's own
``*_default_params`` functions, into buffers larger than they are, and only fields whose default
value is found where it is expected are changed; a release with other structs is refused.

Source: ``include/llama.h`` of llama.cpp.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import InputError, MissingExtraError, UnsupportedError
from kvant.files.source import printable
from kvant.runtimes.stepping import Logits, Tokens, Wanted

__all__ = ["LlamaCppStepper", "installed", "version_text"]

_HOW = "pip install 'kvant[llama-cpp]'"
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_ROOM = 128
"""32-bit words of a buffer for a struct: three times what the largest one takes."""
_LOG_LINES = 50


def installed() -> bool:
    """Whether the wheel is there; it is not loaded."""
    return find_spec("xllamacpp") is not None


def version_text() -> str:
    """What a report says was used."""
    try:
        return f"llama.cpp (xllamacpp {version('xllamacpp')})"
    except PackageNotFoundError:
        return "llama.cpp"


class _ModelParams(ctypes.Structure):
    _fields_ = (("word", ctypes.c_int32 * _ROOM),)


class _ContextParams(ctypes.Structure):
    _fields_ = (("word", ctypes.c_int32 * _ROOM),)


#: Places of ``llama_context_params``, in 32-bit words.
_N_CTX, _N_BATCH, _N_UBATCH, _N_SEQ_MAX, _N_OUTPUTS_MAX, _N_OUTPUTS_SEQ = 0, 1, 2, 3, 5, 6
_N_THREADS, _N_THREADS_BATCH, _FLASH, _TYPE_K, _TYPE_V = 7, 8, 13, 26, 27
_DEFAULTS = (
    *((_N_CTX, 512), (_N_BATCH, 2048), (_N_UBATCH, 512), (_N_SEQ_MAX, 1), (_FLASH, -1)),
    *((_N_THREADS, 4), (_N_THREADS_BATCH, 4), (_TYPE_K, 1), (_TYPE_V, 1)),
)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


class _Library:
    """llama.cpp in this process."""

    def __init__(self, path: Path) -> None:
        self.lib = lib = ctypes.CDLL(str(path))
        self.log: list[str] = []
        self._callback = _LOG(self._heard)
        lib.llama_log_set(self._callback, None)
        _declare(lib)
        lib.llama_backend_init()
        self.model_params: _ModelParams = lib.llama_model_default_params()
        self.context_params: _ContextParams = lib.llama_context_default_params()
        if any(self.context_params.word[place] != value for place, value in _DEFAULTS):
            raise UnsupportedError(
                f"This release of llama.cpp ({version_text()}) has other structs than kvant "
                f"knows, so it is not used. Install another one: {_HOW}."
            )

    def _heard(self, level: int, text: bytes, data: object) -> None:
        self.log = [*self.log[1 - _LOG_LINES :], text.decode("utf-8", "replace")]


@cache
def _library() -> _Library:
    """The installed wheel's llama.cpp; one a process, because its log and backend are."""
    if not installed():
        raise MissingExtraError(f"Running a file with llama.cpp needs xllamacpp: {_HOW}.")
    try:
        module = importlib.import_module("xllamacpp")
        path = min(Path(str(module.__file__)).parent.glob("*.so"))
        return _Library(path)
    except (ImportError, OSError, ValueError, AttributeError) as error:
        raise MissingExtraError(
            f"The installed {version_text()} cannot be used: {printable(str(error), 200)}. "
            "It needs the OpenMP library (on Debian: apt install libgomp1)."
        ) from None


class LlamaCppStepper:
    """A GGUF file in llama.cpp, with its defaults: float16 cache, flash attention where it has it.

    Several sequences share one context; ``sequences`` of ``context`` tokens each.
    """

    whole = False
    how = "llama_decode, float16 cache, its defaults"

    def __init__(self, path: Path, *, threads: int, context: int, sequences: int = 1) -> None:
        """Load the file (the first shard of a split one) and set memory for the cache aside.

        Raises:
            MissingExtraError, UnsupportedError: no llama.cpp, or one that kvant does not know.
            InputError: llama.cpp refuses the file; its words are in the message.
        """
        self._library = _library()
        self._lib = lib = self._library.lib
        self._context: int | None = None
        self._model: int | None = lib.llama_model_load_from_file(
            str(path).encode(), self._library.model_params
        )
        if not self._model:
            raise self._refused(path)
        self.context = context
        self.vocab_size = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model)))
        params = _ContextParams.from_buffer_copy(self._library.context_params)
        word = params.word
        # llama.cpp pads the cache of a sequence to whole numbers of 256.
        word[_N_CTX] = -(-context // 256) * 256 * sequences
        word[_N_SEQ_MAX] = sequences
        word[_N_OUTPUTS_MAX] = word[_N_OUTPUTS_SEQ] = 0  # as many as the batch
        word[_N_THREADS] = word[_N_THREADS_BATCH] = threads
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise self._refused(path)
        self._room = int(word[_N_UBATCH])
        self._batch = lib.llama_batch_init(self._room, 0, 1)
        self._free = list(range(sequences))

    def _refused(self, path: Path) -> InputError:
        said = " ".join(line.strip() for line in self._library.log[-6:])
        return InputError(f"{path}: llama.cpp does not load it: {printable(said, 400)}")

    def __del__(self) -> None:
        """Give the model and its cache back."""
        if getattr(self, "_context", None):
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._context)
        if getattr(self, "_model", None):
            self._lib.llama_model_free(self._model)

    def sequence(self) -> LlamaCppSequence:
        """A new, empty sequence."""
        return LlamaCppSequence(self, self._free.pop(0))

    def forget(self, sequence: LlamaCppSequence, length: int) -> None:
        """Drop the keys and values of a sequence's tokens from ``length`` on."""
        memory = self._lib.llama_get_memory(self._context)
        self._lib.llama_memory_seq_rm(memory, sequence.id, length, -1)

    def release(self, sequence: LlamaCppSequence) -> None:
        """Take a sequence's place back."""
        self.forget(sequence, 0)
        self._free.append(sequence.id)

    def feed(self, sequence: LlamaCppSequence, tokens: Tokens, wanted: Wanted, /) -> Logits:
        """See `Stepper`."""
        parts = []
        for start in range(0, len(tokens), self._room):
            part = tokens[start : start + self._room]
            early = wanted == "last" and start + len(part) < len(tokens)
            parts.append(self._decode(sequence, part, "none" if early else wanted))
        return np.concatenate(parts)

    def feed_together(self, sequences: Sequence[LlamaCppSequence], tokens: Tokens, /) -> Logits:
        """See `Together`."""
        places = [(sequence.id, sequence.length) for sequence in sequences]
        rows = self._run(tokens, places, np.ones(len(tokens), np.int8))
        for sequence in sequences:
            sequence.length += 1
        return rows

    def _decode(self, sequence: LlamaCppSequence, tokens: Tokens, wanted: Wanted) -> Logits:
        flags = np.full(len(tokens), wanted == "all", np.int8)
        flags[-1] = wanted != "none"
        start = sequence.length
        places = [(sequence.id, start + i) for i in range(len(tokens))]
        rows = self._run(tokens, places, flags)
        sequence.length += len(tokens)
        return rows

    def _run(
        self, tokens: Tokens, places: Sequence[tuple[int, int]], flags: npt.NDArray[np.int8]
    ) -> Logits:
        """One call: tokens, the sequence and position of each, and which rows are wanted."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, (token, (place, position)) in enumerate(zip(tokens.tolist(), places, strict=True)):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, flags[i]
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, place
        if status := self._lib.llama_decode(self._context, batch):
            raise InputError(f"llama.cpp could not run the model: llama_decode gives {status}.")
        rows = int(flags.sum())
        if not rows:
            self._lib.llama_synchronize(self._context)
            return np.empty((0, self.vocab_size), np.float32)
        found = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(found, (rows, self.vocab_size)).copy()


class LlamaCppSequence:
    """A sequence's place in the context."""

    def __init__(self, owner: LlamaCppStepper, place: int) -> None:
        self._owner = owner
        self.id = place
        self.length = 0

    def truncate(self, length: int, /) -> None:
        """Forget all tokens but the first ``length``."""
        self._owner.forget(self, length)
        self.length = length

    def free(self) -> None:
        """Give its place back."""
        self._owner.release(self)
        self.length = 0


def _declare(lib: ctypes.CDLL) -> None:
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "llama_backend_init": (None, []),
        "llama_model_default_params": (_ModelParams, []),
        "llama_context_default_params": (_ContextParams, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, _ModelParams]),
        "llama_model_free": (None, [pointer]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (number, [pointer]),
        "llama_init_from_model": (pointer, [pointer, _ContextParams]),
        "llama_free": (None, [pointer]),
        "llama_batch_init": (_Batch, [number, number, number]),
        "llama_batch_free": (None, [_Batch]),
        "llama_decode": (number, [pointer, _Batch]),
        "llama_synchronize": (None, [pointer]),
        "llama_get_logits": (ctypes.POINTER(ctypes.c_float), [pointer]),
        "llama_get_memory": (pointer, [pointer]),
        "llama_memory_seq_rm": (ctypes.c_bool, [pointer, number, number, number]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
