"""The corpus of attack files: every way we know for an input to lie, made afresh for a test.

``CASES[name](folder)`` writes into an empty folder and returns what a user would name as the
source: a ``.gguf`` file (names ``gguf-``) or a Hugging Face folder (``safetensors-``,
``folder-``, ``config-``). Every one must be refused with one clear error, in under a second and
300 MB, with nothing written. The same name gives the same bytes every time.

``MEANINGLESS`` holds config files that parse but mean nothing: also to be refused, by the reader
of models rather than the reader of files.

``python -m attacks.make FOLDER`` (in tests/) writes them all out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from attacks import config_cases, gguf_cases, safetensors_cases

__all__ = ["CASES", "MEANINGLESS"]

CASES: dict[str, Callable[[Path], Path]] = {
    **gguf_cases.CASES,
    **safetensors_cases.CASES,
    **config_cases.CASES,
}

MEANINGLESS: dict[str, Callable[[Path], Path]] = config_cases.MEANINGLESS


if __name__ == "__main__":
    for name, case in {**CASES, **MEANINGLESS}.items():
        place = Path(sys.argv[1]) / name
        place.mkdir(parents=True)
        print(case(place))
