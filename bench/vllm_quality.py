"""What a model loses at W4A16 with groups of 128: kvant against llm-compressor's GPTQ.

Both calibrate on the same tokens and write the same layout; both folders are measured by kvant's
engine on what they decode to, on a text that calibration never saw. llm-compressor lives in an
environment of its own (``python3 -m venv X && X/bin/pip install llmcompressor``).

python bench/vllm_quality.py --llmcompressor X/bin/python [--model bench/models/qwen3-11m]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import Bar, Report, add_options, child, kvant_command, machine, table

BAR = 0.9
"""The most that mean divergence may be, as a multiple of llm-compressor's GPTQ."""

_PEER = """
import json, sys
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer
import torch
source, out, ids = sys.argv[1:4]
chunks = json.load(open(ids))
data = Dataset.from_dict({"input_ids": chunks, "attention_mask": [[1] * len(c) for c in chunks]})
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(source)
recipe = GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])
oneshot(model=model, dataset=data, recipe=recipe, max_seq_length=len(chunks[0]),
        num_calibration_samples=len(chunks), tokenizer=tokenizer)
model.save_pretrained(out, save_compressed=True)
tokenizer.save_pretrained(out)
"""


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Divergence at W4A16 g128, at equal bytes.")
    parser.add_argument("--llmcompressor", required=True, metavar="PYTHON", type=Path)
    parser.add_argument("--model", default="demo", help="what to quantise (default: demo)")
    parser.add_argument("--calibration", metavar="FILE", help="UTF-8 text (default: built in)")
    parser.add_argument("--text", metavar="FILE", help="text to evaluate on (default: built in)")
    parser.add_argument("--efforts", nargs="+", default=["balanced"])
    add_options(parser, rounds=None)
    arguments = parser.parse_args()
    report = Report("Divergence at W4A16 with groups of 128", machine())
    report.head()
    with tempfile.TemporaryDirectory() as scratch:
        rows = _measure(arguments, Path(scratch), report)
    print(table(("effort", "kvant", "GPTQ", "ratio", "difference", "se"), rows))
    return report.finish(arguments)


def _measure(arguments: argparse.Namespace, folder: Path, report: Report) -> list[tuple[str, ...]]:
    from kvant import evaluate
    from kvant.api.calibration import calibration_chunks
    from kvant.api.source import open_source, resolve
    from kvant.builtin import builtin_text
    from kvant.evaluation import kld_difference

    calibration = arguments.calibration or builtin_text("calibration")
    text = arguments.text or builtin_text("evaluation")
    # In float32, scales too, on both sides: what is compared is the choice of codes and scales.
    source = folder / "source"
    made: list[str | Path] = [*kvant_command(), "convert", resolve(arguments.model), "-o", source]
    child([*made, "--to", "hf", "--dtype", "f32"])
    chunks = calibration_chunks(open_source(source), [calibration])
    (folder / "ids.json").write_text(json.dumps(chunks.ids.tolist()))
    theirs = folder / "gptq"
    child([arguments.llmcompressor, "-c", _PEER, source, theirs, folder / "ids.json"])
    ours = {effort: folder / effort for effort in arguments.efforts}
    for effort, out in ours.items():
        command: list[str | Path] = [*kvant_command(), "quantize", source, "w4a16", "-o", out]
        child([*command, "--to", "vllm", "--effort", effort, "--text", calibration])
    results = evaluate([theirs, *ours.values()], source, text=text)[1:]
    rows: list[tuple[str, ...]] = []
    for effort, mine in zip(ours, results[1:], strict=True):
        assert mine.kld is not None
        assert results[0].kld is not None
        difference = kld_difference(mine, results[0])
        found: dict[str, Any] = {
            "model": arguments.model,
            "effort": effort,
            "kvant": mine.kld,
            "gptq": results[0].kld,
            "ratio": mine.kld / results[0].kld,
            "difference": difference.value,
            "difference_se": difference.se,
        }
        report.results.append(found)
        report.bars.append(Bar(f"w4a16, {effort}", found["ratio"], BAR))
        rows.append(
            (
                *(effort, f"{mine.kld:.5f}", f"{results[0].kld:.5f}", f"{found['ratio']:.3f}"),
                *(f"{difference.value:+.5f}", f"{difference.se:.5f}"),
            )
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
