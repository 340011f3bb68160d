"""A model run by ONNX Runtime on the processor: for calibration, checks and comparison."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.engine.load import processors
from kvant.errors import FileFormatError, NotEnoughMemoryError, UnsupportedError
from kvant.files.source import printable
from kvant.onnxtools.apart import Apart, is_apart
from kvant.onnxtools.model import weight_bytes
from kvant.onnxtools.packages import onnxruntime
from kvant.onnxtools.save import EXTERNAL_FROM, externalised

__all__ = ["Array", "Feeds", "Session", "stored"]

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]


class Session:
    """A loaded model.

    Args:
        proto: the model.
        name: what messages call it.
        plain: run the graph as it is, without ONNX Runtime's own optimisation: for values inside.
        threads: processors to use; None: all.
        optimised: write the optimised graph here, made at ``level``.
        level: ``basic``, ``extended`` or ``all``, where not ``plain``.
        apart: weights that are not in ``proto``.

    Raises:
        UnsupportedError: an operator, type or combination that ONNX Runtime lacks.
        FileFormatError: the graph is not valid.
        NotEnoughMemoryError: it does not fit.
    """

    def __init__(
        self,
        proto: Any,
        name: str,
        *,
        plain: bool = False,
        threads: int | None = None,
        optimised: Path | None = None,
        level: str = "all",
        apart: Apart | None = None,
    ) -> None:
        runtime = onnxruntime()
        levels = runtime.GraphOptimizationLevel
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads or processors()
        options.inter_op_num_threads = 1
        options.graph_optimization_level = (
            levels.ORT_DISABLE_ALL if plain else getattr(levels, f"ORT_ENABLE_{level.upper()}")
        )
        # Threads that spin between runs would take the processors from what is compared with.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # The arena keeps the most any run needed and more; figures of memory would be its own.
        options.enable_cpu_mem_arena = not plain
        if optimised is not None:
            options.optimized_model_filepath = str(optimised)
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", optimised.name + ".data"
            )
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
            )
        self.name = name
        providers = ["CPUExecutionProvider"]
        self._weights = self._given(options, proto, apart or {})
        try:
            with stored(proto) as model:
                self._session = runtime.InferenceSession(model, options, providers=providers)
        except Exception as error:
            raise _refused(error, name) from None
        self.outputs = [output.name for output in self._session.get_outputs()]

    @staticmethod
    def _given(options: Any, proto: Any, apart: Apart) -> list[Any]:
        """Hand ONNX Runtime the weights that stand apart; they are not copied."""
        names = [t.name for t in proto.graph.initializer if is_apart(t) and t.name in apart]
        make = onnxruntime().OrtValue.ortvalue_from_numpy
        values = [make(apart[name]) for name in names]
        if names:
            options.add_external_initializers(names, values)
        return values

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> list[Any]:
        """The outputs (all, in order) for one batch.

        Raises:
            UnsupportedError: the model refuses these values: an index out of range, a shape.
        """
        try:
            found: list[Any] = self._session.run(outputs, dict(feeds))
        except Exception as error:
            if "bad_alloc" in str(error) or "Failed to allocate" in str(error):
                raise NotEnoughMemoryError(
                    f"{self.name}: a run needs more memory than there is. Use smaller inputs."
                ) from None
            shapes = ", ".join(f"{k} {v.dtype} {list(v.shape)}" for k, v in feeds.items())
            raise UnsupportedError(
                f"{self.name}: ONNX Runtime cannot run it on {shapes}: {_cause(error)}"
            ) from None
        return found


@contextmanager
def stored(proto: Any) -> Iterator[bytes | str]:
    """The model as ONNX Runtime takes it: bytes, or the path of a temporary file if it is large."""
    if weight_bytes(proto) < EXTERNAL_FROM:
        yield proto.SerializeToString()
        return
    with tempfile.TemporaryDirectory(prefix="kvant-onnx-") as folder:
        path = Path(folder) / "model.onnx"
        with (path.parent / "model.data").open("wb") as data:

            def write(values: bytes, offset: int) -> None:
                data.seek(offset)
                data.write(values)

            with externalised(proto, "model.data", write):
                path.write_bytes(proto.SerializeToString())
        yield str(path)


def finite(values: object) -> bool:
    """Whether an output holds no NaN or infinity."""
    array = np.asarray(values)
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _refused(error: Exception, name: str) -> Exception:
    text = _cause(error)
    lowered = str(error).lower()
    if "bad_alloc" in lowered or "failed to allocate" in lowered:
        return NotEnoughMemoryError(f"{name}: its weights do not fit into memory.")
    if "NOT_IMPLEMENTED" in str(error) or "not implemented" in lowered:
        return UnsupportedError(
            f"{name}: ONNX Runtime has no kernel for it on a processor: {text} Keep that node in "
            "float, or use another level."
        )
    if "is not a registered function/op" in lowered or "No Op registered" in str(error):
        return UnsupportedError(
            f"{name}: {text} ONNX Runtime does not know this operator; export the model with "
            "standard ones."
        )
    return FileFormatError(f"{name}: ONNX Runtime cannot load it: {text}")


def _cause(error: Exception) -> str:
    """ONNX Runtime's message without its code and source line; ends with a full stop."""
    text = " ".join(str(error).split())
    for mark in (" : ", "] "):
        if text.startswith("[ONNXRuntimeError]") and mark == " : ":
            text = text.split(mark, 3)[-1]
    before, mark, status = text.partition("Status Message: ")
    if mark:  # without the condition in ONNX Runtime's source that does not hold
        text = before + status.split(" was false. ")[-1]
    return printable(text.rstrip("."), 300) + "."
