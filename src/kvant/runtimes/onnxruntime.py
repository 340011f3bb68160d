"""ONNX folders run by ONNX Runtime on the processor.

What a graph has to look like is what onnxruntime-genai expects: ``input_ids``, perhaps
``attention_mask`` and ``position_ids``, ``past_key_values.N.key|value`` in; ``logits`` and
``present.N.key|value`` out; other names where genai_config.json says so. A graph without a cache
is given whole sequences.
"""

from __future__ import annotations

import importlib
import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from kvant.errors import InputError, MissingExtraError, UnsupportedError
from kvant.files.source import printable, quote
from kvant.runtimes.onnx_names import OnnxNames, find_graph, read_names
from kvant.runtimes.stepping import Logits, Tokens, Wanted

__all__ = ["OnnxSequence", "OnnxStepper", "installed", "load_onnxruntime", "version_text"]

_HOW = "pip install 'kvant[onnx]'"
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


def installed() -> bool:
    """Whether ONNX Runtime is there; it is not imported."""
    return find_spec("onnxruntime") is not None


def version_text() -> str:
    """What a report says was used."""
    try:
        return f"onnxruntime {version('onnxruntime')}"
    except PackageNotFoundError:  # built from source, or one of its variants
        return "onnxruntime"


def load_onnxruntime() -> Any:
    """The module, with its telemetry off, which only the environment can do, and before import.

    Raises:
        MissingExtraError: it is not installed.
    """
    if not installed():
        raise MissingExtraError(f"Running an ONNX model needs onnxruntime: {_HOW}.")
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    return importlib.import_module("onnxruntime")


class OnnxStepper:
    """A language model's graph in a session of ONNX Runtime."""

    def __init__(self, folder: Path, *, threads: int, context: int | None = None) -> None:
        """Load the folder's graph.

        Args:
            folder: the folder, or its ``.onnx`` file.
            threads: processors for one operator.
            context: most tokens of a sequence, where known; memory for as many is set aside.

        Raises:
            MissingExtraError: ONNX Runtime is not installed.
            InputError: it refuses the graph; its words are in the message.
            UnsupportedError: the graph is not that of a language model.
        """
        ort = load_onnxruntime()
        self._ort: Any = ort
        self.path = find_graph(folder)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # Its threads would go on spinning after a run, and slow whatever is measured beside it.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        try:
            session = ort.InferenceSession(
                str(self.path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no common base but this
            raise InputError(
                f"{self.path}: {version_text()} does not load it: {printable(str(error), 300)}"
            ) from None
        self._session: Any = session
        self._inputs = {i.name: i for i in session.get_inputs()}
        outputs = {o.name: o for o in session.get_outputs()}
        self.names: OnnxNames = read_names(self.path, self._inputs, outputs)
        self.vocab_size = _vocabulary(self.path, outputs[self.names.logits])
        self.context = context
        self.whole = not self.names.cache
        self._cpu = ort.OrtValue.ortvalue_from_numpy
        # As onnxruntime-genai runs it: room for all tokens from the start, written in place.
        self._room = context if self.names.in_place and context is not None else 0

    @property
    def how(self) -> str:
        """How the graph is run."""
        if self.whole:
            return "a session on the processor, keys and values computed again each step"
        cache = "written in place" if self._room else "given back anew each step"
        return f"a session on the processor, keys and values {cache}"

    def sequence(self) -> OnnxSequence:
        """A new, empty sequence."""
        cache = {past: self._empty(past) for past, _ in self.names.cache}
        return OnnxSequence(cache, in_place=self._room > 0)

    def _empty(self, name: str) -> Any:
        """A cache of no tokens: batch 1, what is symbolic besides is the length."""
        given = self._inputs[name]
        shape = [n if isinstance(n, int) else self._room for n in given.shape]
        shape[0] = 1
        return self._cpu(np.zeros(shape, self._dtype(name)))

    def _dtype(self, name: str) -> Any:
        kind = self._inputs[name].type
        if kind not in _DTYPES:
            raise UnsupportedError(
                f"{self.path}: the input {quote(name)} is {kind}, expected one of "
                f"{', '.join(_DTYPES)}. Export the model with a cache of floats."
            )
        return _DTYPES[kind]

    def feed(self, sequence: OnnxSequence, tokens: Tokens, wanted: Wanted, /) -> Logits:
        """See `Stepper`; a graph computes all rows, those not wanted are dropped."""
        names, count = self.names, len(tokens)
        total = sequence.length + count
        binding = self._session.io_binding()
        for name, values in (
            (names.input_ids, np.asarray(tokens)[None]),
            (names.attention_mask, np.ones((1, total))),
            (names.position_ids, np.arange(sequence.length, total)[None]),
        ):
            if name is not None:
                array = np.ascontiguousarray(values, self._dtype(name))
                binding.bind_ortvalue_input(name, self._cpu(array))
        for name, value in sequence.cache.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output(names.logits, "cpu")
        for past, present in names.cache:
            if sequence.in_place:
                binding.bind_ortvalue_output(present, sequence.cache[past])
            else:
                binding.bind_output(present, "cpu")
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise InputError(
                f"{self.path}: {version_text()} could not run it: {printable(str(error), 300)}"
            ) from None
        logits, *presents = binding.get_outputs()
        if not sequence.in_place:
            sequence.cache = dict(zip((past for past, _ in names.cache), presents, strict=True))
        sequence.length = total
        if wanted == "none":
            return np.empty((0, self.vocab_size), np.float32)
        rows = logits.numpy()[0]
        if wanted == "all" and len(rows) != count:
            raise UnsupportedError(
                f"{self.path}: the graph gives logits for {len(rows)} of {count} tokens, expected "
                "all. Export the model without pruning its head."
            )
        return np.ascontiguousarray(rows if wanted == "all" else rows[-1:], np.float32)


class OnnxSequence:
    """The keys and values of one sequence, as the graph last gave them."""

    def __init__(self, cache: dict[str, Any], *, in_place: bool) -> None:
        self.cache = cache
        self.in_place = in_place
        self.length = 0

    def truncate(self, length: int, /) -> None:
        """Forget all tokens but the first ``length``."""
        for name, value in () if self.in_place else self.cache.items():
            array = value.numpy()
            self.cache[name] = type(value).ortvalue_from_numpy(
                np.ascontiguousarray(array[:, :, :length])
            )
        self.length = length

    def free(self) -> None:
        """Give the cache back."""
        self.cache = {}


def _vocabulary(path: Path, logits: Any) -> int:
    size = logits.shape[-1] if logits.shape else None
    if len(logits.shape) != 3 or not isinstance(size, int):
        raise UnsupportedError(
            f"{path}: the output {quote(logits.name)} has the shape {printable(str(logits.shape))},"
            " expected [batch, tokens, vocabulary] with a number for the last. Export the model as "
            "a language model with logits."
        )
    return size
