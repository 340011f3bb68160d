"""Write docs/supported.md: architectures, packings and presets, with what the tests prove of each.

Nothing in the table is said by hand: names come from kvant's registries, counts from the tables the
tests are parametrised with. A test fails where the page is not what this writes.

Usage: python scripts/supported.py [--check]
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "supported.md"
_TESTS = REPOSITORY / "tests"
for folder in (_TESTS / "engine", _TESTS):
    sys.path.insert(0, str(folder))

from kvant import _core  # noqa: E402
from kvant.arch import Architecture, architecture, architecture_names, find_hf  # noqa: E402
from kvant.packing import all_packings  # noqa: E402
from kvant.quant.presets import PRESETS  # noqa: E402

_HEAD = """\
# What is supported, and what was proven of it

<!-- Written by scripts/supported.py from the tables of the tests; do not edit. -->

Every number is a count of test cases that run in the ordinary test suite (`pytest`); those that
compare with transformers or llama.cpp need the extra `parity`, those with llama-quantize the tool
itself (`KVANT_LLAMA_BIN`). A dash: no such case.

## Architectures
"""

_COLUMNS = {
    "transformers": (
        "logits of small random models saved by transformers, within 1e-5 of the largest, by the "
        "reference interpreter: `tests/reference/test_transformers_parity.py`; of encoders, "
        "states: `tests/reference/test_encoder_parity.py`"
    ),
    "llama.cpp": (
        "our GGUF file run by llama.cpp, F32 and F16, within 1e-3 to 3e-3 of the engine's largest "
        "logit: `tests/engine/test_engine_llamacpp.py`, "
        "`tests/export/test_logits_against_llamacpp.py`; of encoders, vectors of texts, whose "
        "cosine lacks less than 1e-6 to one: `tests/export/test_encoder_files.py`"
    ),
    "quantised": (
        "recipes whose file llama.cpp and the engine run with a mean divergence below 1e-3 (1e-2 "
        "with experts; of encoders, a cosine that lacks less than 1e-4): the same files"
    ),
    "engine": (
        "models the engine runs as the reference does, in F32, F16, BF16 and Q8_0: "
        "`tests/engine/test_engine_reference.py`"
    ),
    "invariance": (
        "models whose logits are the same to the last bit in any chunks, batches, threads and "
        "places of the weights: `tests/engine/test_invariance.py`"
    ),
    "captures": (
        "models whose layers run one by one and whose linears' inputs are what NumPy computes, as "
        "calibration needs them: `tests/engine/test_measuring_access.py`, of experts "
        "`tests/engine/test_experts.py`"
    ),
    "presets": (
        "shapes for which every preset gives every tensor the type that llama-quantize gives it: "
        "`tests/quant/test_recipes_by_the_rules.py`"
    ),
}


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _by_architecture(models: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """The architecture of each of ``names``."""
    return [find_hf(models[name], name).name for name in names if name in models]


def _proven() -> dict[str, list[str]]:
    """Column to the architectures of its cases, one entry a case."""
    models = _module("engine_models").MODELS
    transformers = _module("reference.test_transformers_parity").CASES
    exported = _module("export.test_logits_against_llamacpp")
    foreign = _module("test_engine_llamacpp")
    found = {
        "transformers": [_of_family(family) for family, _ in transformers.values()],
        "llama.cpp": _by_architecture(models, foreign.NAMES)
        + _by_architecture(exported.MODELS, exported.MODELS),
        "quantised": _by_architecture(models, (name for name, _ in foreign.QUANTISED))
        + _by_architecture(
            {**exported.MODELS, **exported.ODD}, (name for name, _ in exported.QUANTISED)
        ),
        "engine": _by_architecture(models, models),
        "invariance": _by_architecture(
            models, (name for name, *_ in _module("test_invariance").ENGINES.values())
        ),
        "captures": _by_architecture(models, _module("test_measuring_access").NAMES)
        + _by_architecture(models, _module("test_experts").NAMES),
        "presets": _by_architecture(
            _module("quant.test_recipes_by_the_rules").MODELS,
            _module("quant.test_recipes_by_the_rules").MODELS,
        ),
    }
    for column, cases in _of_encoders().items():
        found[column] += cases
    return found


def _of_encoders() -> dict[str, list[str]]:
    """The same for models that end in states; their vectors are compared, pooled."""
    engine, files = _module("test_encoders"), _module("export.test_encoder_files")
    states = _module("reference.test_encoder_parity").CASES
    return {
        "transformers": ["bert"] * len(states),
        "llama.cpp": ["bert"] * len(files.SHAPES) * len(files.MODES),
        "quantised": ["bert"] * len(files.RECIPES),
        "engine": _by_architecture(engine.MODELS, engine.MODELS),
        "invariance": _by_architecture(engine.MODELS, engine.INVARIANT),
    }


def _of_family(family: str) -> str:
    for arch in map(architecture, architecture_names()):
        if any(name.startswith((f"{family}For", f"{family}LMHead")) for name in arch.hf_classes):
            return arch.name
    raise ValueError(f"no architecture computes {family}")


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def _architecture_row(arch: Architecture, proven: Mapping[str, list[str]]) -> list[object]:
    counts = [proven[column].count(arch.name) or "–" for column in _COLUMNS]
    classes = ", ".join(f"`{name}`" for name in arch.hf_classes)
    return [f"`{arch.name}`", classes, f"`{arch.gguf_name}`", *counts]


def text() -> str:
    """The page."""
    archs = [architecture(name) for name in architecture_names()]
    proven = _proven()
    parts = [_HEAD]
    head = ("architecture", "Hugging Face", "GGUF", *_COLUMNS)
    parts.append(_table(head, [_architecture_row(arch, proven) for arch in archs]))
    parts.append("\n".join(f"- **{name}**: {what}." for name, what in _COLUMNS.items()) + "\n")
    windows = _module("test_engine_llamacpp").WINDOWS
    ignored = sorted(set(_by_architecture(_module("engine_models").MODELS, windows)))
    parts.append(
        f"llama.cpp does not look at the sliding windows of {', '.join(ignored)}; there texts that "
        "fit into the window are compared.\n"
    )
    parts.append(
        "Of encoders (bert) vectors are compared, not logits, by cosine: "
        "`tests/reference/test_encoder_parity.py`, `tests/engine/test_encoders.py`, "
        "`tests/export/test_encoder_files.py`.\n"
    )
    parts.append(_packings())
    parts.append(_presets())
    return "\n".join(parts)


def _packings() -> str:
    rows = []
    for p in all_packings():
        engine = "yes" if _core.has_panels(p.storage.id) else "no"
        rows.append(
            [
                f"`{p.name}`",
                p.precision_class,
                f"{p.bits_per_weight:.4g}",
                p.block,
                engine,
                p.good_for,
            ]
        )
    note = (
        "Each is compared on every instruction set with its specification in NumPy, bit for bit, "
        "and with ggml: decoding is equal to the last bit, encoding is equal (Q4_0 to Q8_0) or has "
        "less squared error: `tests/packing/`. What the engine runs is compared with NumPy's "
        "products: `tests/engine/test_panels.py`.\n"
    )
    head = ("packing", "class", "bits per weight", "block", "engine", "good for")
    return f"## Packings\n\n{note}\n{_table(head, rows)}"


def _presets() -> str:
    rows = [
        [f"`{r.name}`", r.precision_class, f"`{r.base}`", f"`{r.output or r.base}`", r.good_for]
        for r in PRESETS
    ]
    note = (
        "Each gives every tensor what llama-quantize gives it: "
        "`tests/quant/test_recipes_by_the_rules.py`.\n"
    )
    head = ("preset", "class", "base", "output matrix", "good for")
    return f"## Presets\n\n{note}\n{_table(head, rows)}"


def main() -> int:
    """Write the page, or with ``--check`` say whether it is as it should be."""
    if "--check" in sys.argv[1:]:
        return int(PAGE.read_text() != text())
    PAGE.write_text(text())
    print(f"wrote {PAGE}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
