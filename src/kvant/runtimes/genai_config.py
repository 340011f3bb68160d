"""What a stranger's genai_config.json may not say: files elsewhere, and libraries to be loaded.

ONNX Runtime GenAI does what the file says: it loads the shared library of ``custom_ops_library``,
providers load those that their options name, other options write files. So only options that are
known to be harmless pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from kvant.errors import FileFormatError
from kvant.files.source import quote, show

__all__ = ["refuse_foreign"]

_HARMLESS = frozenset(
    {
        *("log_id", "log_severity_level", "log_verbosity_level", "provider_options"),
        *("intra_op_num_threads", "inter_op_num_threads", "graph_optimization_level"),
        *("enable_cpu_mem_arena", "enable_mem_pattern", "disable_cpu_ep_fallback"),
        *("disable_quant_qdq", "enable_quant_qdq_cleanup", "use_env_allocators"),
        *("use_device_allocator_for_initializers", "session.intra_op.allow_spinning"),
        *("session.inter_op.allow_spinning", "session.set_denormal_as_zero"),
    }
)
"""Options of a session that name no file and load nothing."""
_FILE = re.compile(r"filename$|_file$|_dir$|(^|_)path$", re.IGNORECASE)
_OPTION = re.compile(r"path|librar|(^|_)lib|dll|dir|file|cache|config|alloc", re.IGNORECASE)
_PLAIN = re.compile(r"[\w .:,+-]{0,64}", re.ASCII)
_LIBRARY = (".so", ".dll", ".dylib")


def refuse_foreign(config: Mapping[str, Any], where: Path) -> None:
    """Refuse a config that would load a library, or reach beyond its folder.

    Args:
        config: the content of genai_config.json, nested no deeper than `read_json` allows.
        where: the file, for messages.

    Raises:
        FileFormatError: names the entry.
    """
    for path, key, value in _entries(config, ""):
        wrong = _wrong(path, key, value)
        if wrong:
            raise FileFormatError(
                f"{where}: {quote(path)} is {show(value)}, {wrong}. It would be done while the "
                "model is loaded, so it is refused; remove the entry if you do not need it."
            )


def _entries(value: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """Every entry of every object: where it is, its key, its value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{path}.{key}" if path else key
            yield here, key, inner
            yield from _entries(inner, here)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner, path)


def _wrong(path: str, key: str, value: Any) -> str | None:
    above = path.removesuffix(key).split(".")
    if key == "custom_ops_library":
        return "a library to be loaded"
    if "provider_options" in above:
        return None if isinstance(value, dict) or _plain_option(key, value) else _ELSE
    if key == "session_options":
        odd = [k for k in value if k not in _HARMLESS] if isinstance(value, dict) else [key]
        return f"of which {quote(odd[0])} may write files or load code" if odd else None
    if _FILE.search(key) and value and not _inside(value):
        return "expected the name of a file in this folder"
    return None


_ELSE = "an option of a provider that may name a file or library"


def _plain_option(key: str, value: Any) -> bool:
    text = str(value)
    if isinstance(value, list) or _OPTION.search(key) or not _PLAIN.fullmatch(text):
        return False
    return not text.lower().endswith(_LIBRARY)


def _inside(value: Any) -> bool:
    """Whether ``value`` is a path that stays in its folder. Links there are whoever made it's."""
    if not isinstance(value, str) or "\0" in value:
        return False
    return not any(
        kind(value).is_absolute() or kind(value).drive or ".." in kind(value).parts
        for kind in (PurePosixPath, PureWindowsPath)
    )
