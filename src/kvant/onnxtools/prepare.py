"""A model made ready: simplified, at an opset; every step is kept only if the outputs stay.

Each step is a tool of the field: onnxslim, onnx's version converter, onnxruntime's offline
optimisation. None of them is trusted: the model runs before and after on the same values, and a
step that changes what it gives, or breaks it, is undone and named.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvant.errors import KvantError, UnsupportedError
from kvant.files.source import printable
from kvant.onnxtools.compare import relative, squares
from kvant.onnxtools.inner import all_nodes, hoist_weights, inline_functions, to_hoist
from kvant.onnxtools.madeup import make_up
from kvant.onnxtools.model import OnnxModel, copy_of, name_nodes, opset
from kvant.onnxtools.packages import need, onnx
from kvant.onnxtools.save import EXTERNAL_FROM
from kvant.onnxtools.session import Feeds, Session

__all__ = ["Preparation", "load_session", "relative_change"]

_TOLERANCE = 1e-3
"""Largest change of an output, relative to its values, that reordering float32 sums explains."""


class Preparation:
    """Steps from one model to an equal one.

    Args:
        model: the start; not changed.
        feeds: one run's values to check steps with; None: made up from the inputs' types.
        threads: processors to use.
        base: ``model`` loaded, where it is; otherwise it is loaded here.

    Attributes:
        model: what has been reached.
        did: a line for each step: what it changed, or why it was undone.
    """

    def __init__(
        self,
        model: OnnxModel,
        feeds: Feeds | None,
        threads: int | None = None,
        base: Session | None = None,
    ) -> None:
        self.model = model.replaced(copy_of(model.proto))
        self.did: list[str] = []
        self._threads = threads
        session = base or load_session(model, threads)
        if feeds is None:
            made = make_up(model, session)
            feeds = None if made.refused else made.feeds()
            self.did += [made.remedy()] if made.refused else []
        self._feeds = feeds
        self._expected = [] if feeds is None else session.run(feeds)

    def step(self, what: str, change: Callable[[Any], Any], *, whole: bool = True) -> bool:
        """Try ``change`` on a copy; keep the result if the model gives what it gave.

        ``whole``: the change needs the values of weights.
        """
        before = self.model.proto
        try:
            after = self.model.replaced(change(self.model.whole() if whole else copy_of(before)))
            name_nodes(after.proto.graph)
            wrong = self._check(after)
        except KvantError as error:
            self.did.append(f"{what}: undone: {error}")
            return False
        except Exception as error:  # tools of others fail in many ways
            text = printable(" ".join(f"{type(error).__name__}: {error}".split()), 160)
            self.did.append(f"{what}: undone, the tool failed: {text}")
            return False
        if wrong is not None:
            self.did.append(f"{what}: undone, it changed an output by {wrong:.2g} of its size")
            return False
        self.model = after
        counts = [sum(1 for _ in all_nodes(p.graph)) for p in (before, after.proto)]
        self.did.append(f"{what}: {counts[0]} nodes, then {counts[1]}")
        return True

    def _check(self, model: OnnxModel) -> float | None:
        if self._feeds is None:
            return None
        session = Session(model.proto, model.name, threads=self._threads, apart=model.apart)
        wrong = relative_change(self._expected, session.run(self._feeds))
        return None if wrong <= _TOLERANCE else wrong

    def simplify(self) -> None:
        """Functions where they are called; onnxslim; weights of inner graphs in the outermost.

        onnxslim folds constants, infers shapes, fuses batch norms and drops the unused.
        """
        if self.model.weight_bytes >= EXTERNAL_FROM:
            self.did.append("not simplified: onnxslim copies a model this large too often")
        else:
            functions = len(self.model.proto.functions)
            if functions:
                what = f"{functions} functions of the model put where they are called (onnx)"
                self.step(what, inline_functions)
            self.step("simplified (onnxslim)", need("onnxslim").slim)
        if to_hoist(self.model.proto):
            what = "weights of inner graphs, and constants, moved to the outermost graph"
            self.step(what, hoist_weights, whole=False)

    def raise_opset(self, least: int) -> bool:
        """Convert the model to opset ``least`` where it is older; whether it was.

        Raises:
            UnsupportedError: onnx cannot convert it, or not faithfully.
        """
        now = opset(self.model.proto)
        if now >= least:
            return False
        if not self.step(
            f"opset {now} to {least} (onnx)", lambda p: converted(p, least), whole=False
        ):
            raise UnsupportedError(
                f"{self.model.name}: needs opset {least}, is at {now}, and {self.did[-1]}. Export "
                f"it at opset {least}."
            )
        return True

    def fuse(self, level: str, what: str) -> bool:
        """onnxruntime's offline optimisation at ``level``."""
        return self.step(what, lambda proto: optimised(proto, self.model, level), whole=False)


def converted(proto: Any, version: int) -> Any:
    """``proto`` at opset ``version``."""
    result = onnx().version_converter.convert_version(proto, version)
    least = onnx().helper.find_min_ir_version_for(result.opset_import, True)
    result.ir_version = max(result.ir_version, least)
    return result


def optimised(proto: Any, model: OnnxModel, level: str) -> Any:
    """The graph as onnxruntime saves it after optimisation."""
    package = onnx()
    with tempfile.TemporaryDirectory(prefix="kvant-onnx-") as folder:
        path = Path(folder) / "optimised.onnx"
        Session(proto, model.name, optimised=path, level=level, apart=model.apart)
        result = package.load(str(path))
    used = {node.domain for node in result.graph.node} | {""}
    kept = [entry for entry in result.opset_import if entry.domain in used]
    del result.opset_import[:]
    result.opset_import.extend(kept)
    return result


def relative_change(expected: list[Any], got: list[Any]) -> float:
    """Largest RMS difference of an output, relative to the output's own.

    Infinite where shapes differ, or NaN stands where there was a number.
    """
    worst = 0.0
    for one, other in zip(expected, got, strict=True):
        a, b = np.asarray(one), np.asarray(other)
        if a.dtype.kind in "fiub":
            worst = max(worst, relative(squares(a, b)))
        elif a.shape != b.shape or not bool((a == b).all()):
            worst = np.inf
    return worst


def load_session(model: OnnxModel, threads: int | None = None) -> Session:
    """``model`` as ONNX Runtime runs it."""
    return Session(model.proto, model.name, threads=threads, apart=model.apart)
