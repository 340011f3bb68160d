"""The tensors a quantised module is made of, with their shapes and types checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.raw import RawTensor
from kvant.files.source import quote

__all__ = ["FLOATS", "Module", "config_number", "modules_with", "unsupported"]

FLOATS = ("F32", "F16", "BF16")
_REMEDY = "Fetch all files of one release again."


@dataclass(slots=True)
class Module:
    """Tensors below one path; those that were asked for count as used."""

    path: str
    parts: Mapping[str, RawTensor]
    used: set[str] = field(default_factory=set)

    def part(
        self, name: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...] | None = None
    ) -> RawTensor:
        """A part that must be there.

        Raises:
            FileFormatError: it is not, or has another dtype or shape; None in ``shape`` is any.
        """
        found = self.find(name, dtypes, shape)
        if found is None:
            raise FileFormatError(
                f"{self.path}: expected a tensor {name!r} beside the others of this quantised "
                f"layer, got none. {_REMEDY}"
            )
        return found

    def find(
        self, name: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...] | None = None
    ) -> RawTensor | None:
        """As `part`, or None."""
        tensor = self.parts.get(name)
        if tensor is None:
            return None
        fits = shape is None or (
            len(shape) == len(tensor.shape)
            and all(w in (None, h) for w, h in zip(shape, tensor.shape, strict=True))
        )
        if tensor.dtype not in dtypes or not fits:
            wanted = "any shape" if shape is None else str(list(shape)).replace("None", "?")
            raise FileFormatError(
                f"{tensor.path}: tensor {quote(tensor.name)} should be {' or '.join(dtypes)} "
                f"{wanted}, got {tensor.dtype} {list(tensor.shape)}. {_REMEDY}"
            )
        self.used.add(tensor.name)
        return tensor


def modules_with(tensors: Mapping[str, RawTensor], part: str) -> list[Module]:
    """The modules that have a tensor ``part``, each with all its tensors."""
    paths = {n.removesuffix(f".{part}") for n in tensors if n.endswith(f".{part}")}
    parts: dict[str, dict[str, RawTensor]] = {path: {} for path in paths}
    for name, tensor in tensors.items():
        at = len(name)
        while (at := name.rfind(".", 0, at)) > 0:
            if name[:at] in parts:
                parts[name[:at]][name[at + 1 :]] = tensor
                break
    return [Module(path, parts[path]) for path in sorted(paths)]


def config_number(config: Mapping[str, object], key: str, allowed: tuple[int, ...]) -> int:
    """A whole number of a quantisation config.

    Raises:
        UnsupportedError: it is missing, or another than the allowed ones.
    """
    value = config.get(key)
    if type(value) is not int or value not in allowed:
        raise unsupported(key, value, " or ".join(map(str, allowed)))
    return value


def unsupported(key: str, value: object, expected: str) -> UnsupportedError:
    """What a quantisation config says and kvant cannot decode."""
    return UnsupportedError(
        f"The quantisation config's {key!r} should be {expected}, got {quote(str(value)[:60])}. "
        "Get the checkpoint this one was made from."
    )
