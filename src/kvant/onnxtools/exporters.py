"""Models of other frameworks as ONNX, by their own exporters: PyTorch's and scikit-learn's."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kvant.errors import OutputError, UnsupportedError, UsageError
from kvant.files.source import printable
from kvant.onnxtools.model import open_model
from kvant.onnxtools.packages import need
from kvant.onnxtools.save import save_model

__all__ = ["from_sklearn", "from_torch"]


def from_torch(
    module: Any,
    example: Sequence[Any],
    path: str | Path,
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    opset: int = 18,
    force: bool = False,
) -> tuple[Path, ...]:
    """Write a PyTorch module as ONNX, by ``torch.onnx.export`` over ``torch.export``.

    Args:
        module: a ``torch.nn.Module``; it is put into evaluation mode for the export.
        example: arguments it is called with.
        path: the .onnx file.
        inputs, outputs: their names (default: as the module calls them).
        dynamic: free dimensions by argument of ``forward``, such as ``{"x": {0: "batch"}}``.
        opset: of the model.
        force: replace existing files.

    Returns:
        the files written.

    Raises:
        MissingExtraError: the extra ``torch-export`` is not installed.
        UnsupportedError: torch cannot export it.
        OutputError: it cannot be written.
    """
    target = _target(path, force=force)
    torch = need("torch", "torch-export")
    need("onnxscript", "torch-export")
    training = module.training
    names = {"input_names": list(inputs)} if inputs else {}
    names |= {"output_names": list(outputs)} if outputs else {}
    shapes = None
    if dynamic is not None:
        dim = torch.export.Dim
        shapes = {arg: {i: dim(d) for i, d in dims.items()} for arg, dims in dynamic.items()}
    try:
        with warnings.catch_warnings(), _quiet("torch.onnx"):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                tuple(example),
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=opset,
                verbose=False,
                **names,
            )
        proto = program.model_proto
    except Exception as error:
        text = printable(" ".join(str(error).split()), 300)
        raise UnsupportedError(
            f"torch cannot export {type(module).__name__}: {type(error).__name__}: {text}"
        ) from None
    finally:
        module.train(training)
    return _written(proto, target, force=force)


class _quiet:  # noqa: N801 - reads as what it does
    """Within the block, a logger says nothing below an error."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._level = self._logger.level

    def __enter__(self) -> None:
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._level)


def from_sklearn(
    estimator: Any,
    path: str | Path,
    *,
    features: int | None = None,
    force: bool = False,
) -> tuple[Path, ...]:
    """Write a fitted scikit-learn estimator or pipeline as ONNX, by skl2onnx.

    The input is ``input``, float32 [batch, features]. Probabilities of a classifier are an array
    (not a list of maps), so that they can be compared.

    Args:
        estimator: fitted.
        path: the .onnx file.
        features: columns it takes (default: what it was fitted on).
        force: replace existing files.

    Returns:
        the files written.

    Raises:
        MissingExtraError: the extra ``sklearn-export`` is not installed.
        UsageError: the number of features is not known.
        UnsupportedError: skl2onnx cannot convert it.
        OutputError: it cannot be written.
    """
    target = _target(path, force=force)
    convert = need("skl2onnx", "sklearn-export")
    types = need("skl2onnx.common.data_types", "sklearn-export")
    width = features if features is not None else getattr(estimator, "n_features_in_", None)
    if not isinstance(width, int) or width < 1:
        raise UsageError(
            f"{type(estimator).__name__}: how many features it takes is not known. Fit it first, "
            "or pass features=."
        )
    classifies = hasattr(estimator, "predict_proba")
    try:
        proto = convert.convert_sklearn(
            estimator,
            initial_types=[("input", types.FloatTensorType([None, width]))],
            options={id(estimator): {"zipmap": False}} if classifies else None,
        )
    except Exception as error:
        text = printable(" ".join(str(error).split()), 300)
        raise UnsupportedError(
            f"skl2onnx cannot convert {type(estimator).__name__}: {type(error).__name__}: {text}"
        ) from None
    return _written(proto, target, force=force)


def _target(path: str | Path, *, force: bool) -> Path:
    """The file to write; refused before any work where it, or its data, is there already."""
    target = Path(path)
    if target.suffix != ".onnx":
        raise OutputError(f"{target}: expected a name that ends in .onnx.")
    if not target.parent.is_dir():
        raise OutputError(
            f"{target}: cannot be written: its folder does not exist. Create it first."
        )
    for file in (target, target.with_name(target.name + ".data")):
        if os.path.lexists(file) and not force:
            raise OutputError(f"{file}: exists already. Choose another name or pass force=True.")
    return target


def _written(proto: Any, target: Path, *, force: bool) -> tuple[Path, ...]:
    """Write what an exporter made, once it reads back as a sound model."""
    try:
        with TemporaryDirectory(prefix=f".{target.stem[:40]}.", dir=target.parent) as folder:
            open_model(save_model(proto, Path(folder) / target.name)[0])
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror}.") from None
    return save_model(proto, target, force=force)
