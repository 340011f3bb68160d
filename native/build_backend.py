"""scikit-build-core, with a compiler brought along where the machine has none.

PEP 517 lets a build ask for what it needs: where there is no C++ compiler, that is ``ziglang`` from
PyPI (clang with headers and a C library, some 80 MB), and the build uses it. Nothing is installed
beside the build's own environment.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from scikit_build_core import build as _build

ZIG = "ziglang>=0.13"
Settings: TypeAlias = Mapping[str, str | list[str]] | None
_TOOLS = {"CC": "cc", "CXX": "c++", "AR": "ar", "RANLIB": "ranlib"}


def has_compiler() -> bool:
    """Whether CMake would find a C++ compiler."""
    return bool(os.environ.get("CXX")) or any(map(shutil.which, ("c++", "g++", "clang++", "cl")))


def _needed(requires: list[str]) -> list[str]:
    return requires if has_compiler() else [*requires, ZIG]


def _target() -> str:
    """zig's options for plain processors of this kind: by itself it compiles for this very one."""
    if sys.platform != "linux":
        return ""
    libc = "gnu" if platform.libc_ver()[0] == "glibc" else "musl"
    return f"-target {platform.machine()}-linux-{libc}"


@contextmanager
def compiler() -> Iterator[None]:
    """Small programs that CMake takes for a compiler, while they are needed."""
    if has_compiler():
        yield
        return
    print("kvant: there is no C++ compiler here; building with ziglang.", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        old = dict(os.environ)
        for variable, tool in _TOOLS.items():
            path = Path(folder, tool)
            target = _target() if tool in ("cc", "c++") else ""
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang {tool} {target} "$@"\n')
            path.chmod(0o755)
            os.environ[variable] = str(path)
        ar, ranlib = os.environ["AR"], os.environ["RANLIB"]
        os.environ["CMAKE_ARGS"] = (
            f"{old.get('CMAKE_ARGS', '')} -DCMAKE_AR={ar} -DCMAKE_RANLIB={ranlib} "
            f"-DCMAKE_CXX_COMPILER_AR={ar} -DCMAKE_CXX_COMPILER_RANLIB={ranlib}"
        )
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(old)


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """See PEP 517."""
    return _needed(_build.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """See PEP 660."""
    return _needed(_build.get_requires_for_build_editable(config_settings))


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    """See PEP 517."""
    return _build.get_requires_for_build_sdist(config_settings)


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """See PEP 517."""
    with compiler():
        return _build.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """See PEP 660."""
    with compiler():
        return _build.build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """See PEP 517."""
    return _build.build_sdist(sdist_directory, config_settings)
