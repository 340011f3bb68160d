"""llama.cpp itself, by ctypes, from the xllamacpp wheel: does it load a file, and what comes out?

The wheel's extension module exports llama.cpp's C functions. Its structs change between releases,
so they are taken whole from llama.cpp's own ``*_default_params`` functions, into buffers larger
than they are, and only fields whose default value is found where it is expected are changed.
Importing this module needs NumPy only; `load` needs the wheel.

Source: ``include/llama.h`` of llama.cpp.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Llama", "LlamaModel", "load"]

_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_F32 = 0
_ROOM = 128
"""32-bit words of a buffer for a struct: three times what the largest one takes."""


class _ModelParams(ctypes.Structure):
    _fields_ = (("word", ctypes.c_int32 * _ROOM),)
    USE_EXTRA_BUFTS = 74  # byte; repacked weights would be multiplied by other kernels


class _ContextParams(ctypes.Structure):
    _fields_ = (("word", ctypes.c_int32 * _ROOM),)
    N_CTX, N_BATCH, N_UBATCH, N_OUTPUTS_MAX, N_OUTPUTS_SEQ = 0, 1, 2, 5, 6
    N_THREADS, N_THREADS_BATCH, FLASH_ATTENTION, TYPE_K, TYPE_V = 7, 8, 13, 26, 27
    DEFAULTS = (
        *((N_CTX, 512), (N_BATCH, 2048), (N_UBATCH, 512), (FLASH_ATTENTION, -1)),
        *((N_THREADS, 4), (N_THREADS_BATCH, 4), (TYPE_K, 1), (TYPE_V, 1)),
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


@dataclass(frozen=True)
class LlamaModel:
    """A model llama.cpp has loaded."""

    _lib: ctypes.CDLL
    _model: int
    _context_defaults: _ContextParams

    @property
    def vocab_size(self) -> int:
        """Tokens."""
        return int(self._lib.llama_vocab_n_tokens(self._vocab))

    @property
    def _vocab(self) -> int:
        return int(self._lib.llama_model_get_vocab(self._model))

    def metadata(self) -> dict[str, str]:
        """The file's keys and values as llama.cpp prints them."""
        found = {}
        buffer = ctypes.create_string_buffer(1 << 16)
        for i in range(self._lib.llama_model_meta_count(self._model)):
            self._lib.llama_model_meta_key_by_index(self._model, i, buffer, len(buffer))
            key = buffer.value.decode()
            self._lib.llama_model_meta_val_str_by_index(self._model, i, buffer, len(buffer))
            found[key] = buffer.value.decode(errors="replace")
        return found

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Token ids of ``text``."""
        raw = text.encode()
        out = (ctypes.c_int32 * (len(raw) + 16))()
        count = self._lib.llama_tokenize(
            self._vocab, raw, len(raw), out, len(out), add_special, parse_special
        )
        if count < 0:
            raise AssertionError(f"llama_tokenize gives {count}")
        return list(out[:count])

    def logits(self, tokens: Sequence[int], *, threads: int = 2) -> npt.NDArray[np.float32]:
        """Logits of every position of one sequence: float32 [n, vocabulary].

        The cache is in float32 and flash attention is off, so that what is left of llama.cpp's
        own rounding is that of its matrix products.
        """
        count = len(tokens)
        params = _ContextParams.from_buffer_copy(self._context_defaults)
        word = params.word
        word[params.N_CTX] = max(64, count)
        word[params.N_BATCH] = word[params.N_UBATCH] = max(64, count)
        word[params.N_OUTPUTS_MAX] = word[params.N_OUTPUTS_SEQ] = 0  # as many as the batch
        word[params.N_THREADS] = word[params.N_THREADS_BATCH] = threads
        word[params.FLASH_ATTENTION] = 0
        word[params.TYPE_K] = word[params.TYPE_V] = _F32
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            raise AssertionError("llama.cpp makes no context for the model")
        batch = self._lib.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.logits[i] = int(token), i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            if status := self._lib.llama_decode(context, batch):
                raise AssertionError(f"llama_decode gives {status}")
            rows = self._lib.llama_get_logits(context)
            return np.ctypeslib.as_array(rows, (count, self.vocab_size)).copy()
        finally:
            self._lib.llama_batch_free(batch)
            self._lib.llama_free(context)

    def embedding(self, tokens: Sequence[int], *, threads: int = 2) -> npt.NDArray[np.float32]:
        """The pooled states of one sequence, as the file says how, not normalised: float32 [n]."""
        count = len(tokens)
        params = _ContextParams.from_buffer_copy(self._context_defaults)
        word = params.word
        word[params.N_CTX] = word[params.N_BATCH] = word[params.N_UBATCH] = max(64, count)
        word[params.N_THREADS] = word[params.N_THREADS_BATCH] = threads
        word[params.FLASH_ATTENTION] = 0
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            raise AssertionError("llama.cpp makes no context for the model")
        batch = self._lib.llama_batch_init(count, 0, 1)
        try:
            self._lib.llama_set_embeddings(context, True)
            batch.n_tokens = count
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.logits[i] = int(token), i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            if status := self._lib.llama_decode(context, batch):
                raise AssertionError(f"llama_decode gives {status}")
            row = self._lib.llama_get_embeddings_seq(context, 0)
            if not row:
                raise AssertionError("llama.cpp pools nothing")
            width = int(self._lib.llama_model_n_embd(self._model))
            return np.ctypeslib.as_array(row, (width,)).copy()
        finally:
            self._lib.llama_batch_free(batch)
            self._lib.llama_free(context)


class Llama:
    """llama.cpp in this process."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._lib = library
        self.log: list[str] = []
        self._callback = _LOG(lambda level, text, data: self.log.append(text.decode("utf-8", "?")))
        library.llama_log_set(self._callback, None)
        _declare(library)
        library.llama_backend_init()
        self._model_defaults = library.llama_model_default_params()
        self._context_defaults = library.llama_context_default_params()
        for place, value in _ContextParams.DEFAULTS:
            if self._context_defaults.word[place] != value:
                raise ImportError("this xllamacpp has another llama_context_params")
        if bytes(self._model_defaults)[_ModelParams.USE_EXTRA_BUFTS] != 1:
            raise ImportError("this xllamacpp has another llama_model_params")

    @contextmanager
    def open(self, path: Path, *, repack: bool = True) -> Iterator[LlamaModel]:
        """Load a GGUF file (the first shard of a split one).

        With ``repack`` off, weights are multiplied as they lie in the file.

        Raises:
            ValueError: llama.cpp refuses it; its log is the message.
        """
        self.log.clear()
        params = _ModelParams.from_buffer_copy(self._model_defaults)
        raw = (ctypes.c_uint8 * ctypes.sizeof(params)).from_buffer(params)
        raw[_ModelParams.USE_EXTRA_BUFTS] = repack
        model = self._lib.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            raise ValueError(f"llama.cpp does not load {path}: {''.join(self.log)[-2000:]}")
        try:
            yield LlamaModel(self._lib, model, self._context_defaults)
        finally:
            self._lib.llama_model_free(model)

    def logits(self, path: Path, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Load ``path`` and run one sequence: float32 [n, vocabulary]."""
        with self.open(path) as model:
            return model.logits(tokens)


def _declare(lib: ctypes.CDLL) -> None:
    pointer, number, flag = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool
    text, ids = ctypes.c_char_p, ctypes.POINTER(ctypes.c_int32)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "llama_backend_init": (None, []),
        "llama_model_default_params": (_ModelParams, []),
        "llama_context_default_params": (_ContextParams, []),
        "llama_model_load_from_file": (pointer, [text, _ModelParams]),
        "llama_model_free": (None, [pointer]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_model_meta_count": (number, [pointer]),
        "llama_model_meta_key_by_index": (number, [pointer, number, text, ctypes.c_size_t]),
        "llama_model_meta_val_str_by_index": (number, [pointer, number, text, ctypes.c_size_t]),
        "llama_vocab_n_tokens": (number, [pointer]),
        "llama_tokenize": (number, [pointer, text, number, ids, number, flag, flag]),
        "llama_init_from_model": (pointer, [pointer, _ContextParams]),
        "llama_free": (None, [pointer]),
        "llama_batch_init": (_Batch, [number, number, number]),
        "llama_batch_free": (None, [_Batch]),
        "llama_decode": (number, [pointer, _Batch]),
        "llama_get_logits": (ctypes.POINTER(ctypes.c_float), [pointer]),
        "llama_get_embeddings_seq": (ctypes.POINTER(ctypes.c_float), [pointer, number]),
        "llama_set_embeddings": (None, [pointer, flag]),
        "llama_model_n_embd": (number, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments


@cache
def load() -> Llama:
    """llama.cpp from the installed xllamacpp wheel.

    Raises:
        ImportError: the wheel, or the OpenMP library it needs, is not installed, or its structs
            are not those this module knows.
    """
    module = importlib.import_module("xllamacpp")
    libraries = sorted(Path(str(module.__file__)).parent.glob("*.so"))
    if not libraries:
        raise ImportError("xllamacpp has no shared library")
    return Llama(ctypes.CDLL(str(libraries[0])))
