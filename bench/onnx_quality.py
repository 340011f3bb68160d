"""What four bits cost in ONNX: kvant's folders against onnxruntime's own quantiser.

Both start from the same float32 graph, both quantise every matrix product and the embedding, in
blocks of the same length; both are run by onnxruntime on the same text. onnxruntime's quantiser
stores scales in single precision and a tied embedding twice, kvant scales in half precision and
the embedding once, so kvant's files are the smaller ones; `--equal-bytes` also lets kvant spend the
difference on the matrices that need it most.

python bench/onnx_quality.py                       # the built-in model and its texts
python bench/onnx_quality.py --model FOLDER
python bench/onnx_quality.py --effort fast --blocks 32 64 128
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common import Bar, Report, add_options, machine, table

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported

RATIO = 0.7
"""Largest divergence, as a share of that of onnxruntime's better method, that passes."""


class OrtRunner:
    """A decoder's graph, whole texts at a time."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.vocab_size = int(self._session.get_outputs()[0].shape[2])

    def logits(
        self, tokens: npt.NDArray[np.int32], *, first_row: int
    ) -> Iterator[tuple[int, int, npt.NDArray[np.float32]]]:
        """See `kvant.evaluation.Runner`."""
        feed: dict[str, Any] = {
            i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)
            for i in self._session.get_inputs()
            if i.name.startswith("past")
        }
        for number, text in enumerate(tokens):
            ids = text[None].astype(np.int64)
            feed |= {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            (logits,) = self._session.run(["logits"], feed)
            yield number, first_row, np.ascontiguousarray(logits[0, first_row:])


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="what to quantise (default: demo)")
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text (default: the built-in one)")
    parser.add_argument("--blocks", nargs="+", type=int, default=[32, 128], metavar="N")
    parser.add_argument("--efforts", nargs="+", default=["fast", "balanced"], metavar="EFFORT")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    add_options(parser, peer=False, rounds=None)
    arguments = parser.parse_args()
    report = Report("Four bits in ONNX", machine())
    report.head()
    with tempfile.TemporaryDirectory() as scratch:
        rows = _measure(arguments, Path(scratch), report)
    header = ("file", "weights, bytes", "KL divergence", "ratio", "difference", "standard error")
    print(table(header, rows))
    return report.finish(arguments)


def _measure(arguments: argparse.Namespace, work: Path, report: Report) -> list[tuple[str, ...]]:
    from kvant import quantize
    from kvant.api.conversion import convert
    from kvant.api.measurement import corpus_of, read_text
    from kvant.api.source import open_source, tokenizer_of
    from kvant.evaluation import kld_difference
    from kvant.evaluation.measure import Subject, evaluate

    convert(arguments.model, work / "base", to="onnx", threads=arguments.threads)
    files: dict[str, tuple[Path, int]] = {}
    for block in arguments.blocks:
        for method in ("default", "k_quant"):
            files[f"onnxruntime {method} g{block}"] = _peer(work, method, block)
        for effort in arguments.efforts:
            out = work / f"kvant-{effort}-g{block}"
            found: Any = quantize(
                arguments.model,
                f"int4-g{block}",
                out,
                to="onnx",
                effort=effort,
                threads=arguments.threads,
                settings={"float_activations": True},  # as the peer's files have it
            )
            files[f"kvant {effort} g{block}"] = out / "model.onnx", _weight_bytes(found)
    checkpoint = open_source(arguments.model)
    tokenizer = tokenizer_of(checkpoint)
    corpus = corpus_of(read_text(arguments.text), tokenizer, checkpoint, None, None)

    def subject(name: str, path: Path) -> Subject:
        return Subject(name, OrtRunner(path, arguments.threads))

    base = subject("base", work / "base" / "model.onnx")
    found = {}
    for name, (path, _) in files.items():
        found[name] = evaluate(base, [subject(name, path)], corpus, threads=arguments.threads)[1]
    rows: list[tuple[str, ...]] = []
    for block in arguments.blocks:
        peers = [f"onnxruntime {m} g{block}" for m in ("default", "k_quant")]
        best = min((found[p] for p in peers), key=lambda r: r.kld or 0)
        for name in [*peers, *(f"kvant {e} g{block}" for e in arguments.efforts)]:
            result = found[name]
            assert result.kld is not None
            assert best.kld is not None
            gap, ratio = kld_difference(result, best), result.kld / best.kld
            cells = (f"{result.kld:.5f} ± {result.kld_se:.5f}", f"{ratio:.3f}")
            rows.append((name, f"{files[name][1]:,}", *cells, f"{gap.value:+.5f}", f"{gap.se:.5f}"))
            report.results.append({"file": name, "bytes": files[name][1], "kld": result.kld})
        last = found[f"kvant {arguments.efforts[-1]} g{block}"]
        assert last.kld is not None
        assert best.kld is not None
        label = f"int4-g{block} {arguments.efforts[-1]}, share of the peer's divergence"
        report.bars.append(Bar(label, last.kld / best.kld, RATIO, unit="x"))
    return rows


def _weight_bytes(result: Any) -> int:
    return sum(int(t.nbytes) for t in result.tensors if len(t.shape) >= 2)


def _peer(work: Path, method: str, block: int) -> tuple[Path, int]:
    """onnxruntime's quantiser, on a float graph whose head is a plain MatMul.

    A tied matrix, which it stores for the head and for the embedding, is counted once.
    """
    import logging

    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    logging.getLogger("onnxruntime").setLevel(logging.WARNING)
    logging.getLogger(nbits.__name__).setLevel(logging.WARNING)
    model = _untied(onnx.load(str(work / "base" / "model.onnx")))
    if method == "k_quant":
        config = nbits.KQuantWeightOnlyQuantConfig()
        quantizer = nbits.MatMulNBitsQuantizer(model, block_size=block, algo_config=config)
        quantizer.process()
        model = quantizer.model.model
    both = ("Gather",) if method == "k_quant" else ("MatMul", "Gather")
    config = nbits.DefaultWeightOnlyQuantConfig(
        block_size=block, is_symmetric=False, op_types_to_quantize=both
    )
    quantizer = nbits.MatMulNBitsQuantizer(model, algo_config=config, op_types_to_quantize=both)
    quantizer.process()
    model = quantizer.model.model
    out = work / f"ort-{method}-{block}" / "model.onnx"
    out.parent.mkdir()
    large = [t for t in model.graph.initializer if len(t.dims) >= 2 and "rope" not in t.name]
    tied = {
        n for node in model.graph.node if node.op_type == "GatherBlockQuantized" for n in node.input
    }
    nbytes = sum(len(t.raw_data) for t in large if t.name not in tied)
    onnx.save(model, str(out), save_as_external_data=True)
    return out, nbytes


def _untied(model: Any) -> Any:
    """A head that multiplies with the embedding's table gets a transposed copy of its own."""
    import onnx

    tables = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "FusedMatMul":
            values = onnx.numpy_helper.to_array(tables[node.input[1]])
            name = node.input[1] + ".turned"
            model.graph.initializer.append(
                onnx.numpy_helper.from_array(np.ascontiguousarray(values.T), name)
            )
            fresh = onnx.helper.make_node("MatMul", [node.input[0], name], list(node.output))
            node.CopyFrom(fresh)
            node.name = "head"
    return model


if __name__ == "__main__":
    sys.exit(main())
