"""``kvant verify``: is a file sound, and how far is it from its source?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvant.cli import show
from kvant.cli.options import Commands, positive
from kvant.errors import UsageError

if TYPE_CHECKING:
    from kvant.api.evidence_check import Check
    from kvant.export.gguf.verify import Verification

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "verify", help="check structure and checksums, and weights against their source"
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a GGUF file, or a model of the store; with --runtime, a folder too",
    )
    parser.add_argument(
        "--against", metavar="SRC", help="the source: reconstruction error of every tensor"
    )
    parser.add_argument(
        "--evidence",
        action="store_true",
        help="compute again what the file and NAME.evidence.json beside it state",
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="with --evidence: the text it was measured on; with --runtime: the text to read",
    )
    parser.add_argument(
        "--runtime",
        nargs="?",
        const="own",
        metavar="RUNNER",
        help="run the model by its format's own runtime (or the one named) and compare the logits "
        "with those of the weights as kvant decodes them",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="processors to use")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from kvant.api.verification import verify

    if arguments.runtime is not None:
        return _runtime(arguments)
    if arguments.text is not None and not (arguments.evidence or arguments.runtime):
        raise UsageError("--text is the text of --evidence or --runtime; give both.")
    with show.weight_progress("verify") as progress:
        against = None if arguments.evidence else arguments.against
        found = verify(arguments.file, against, threads=arguments.threads, progress=progress)
    checks = _evidence(arguments) if arguments.evidence and found.ok else ()
    ok = found.ok and all(check.ok is not False for check in checks)
    if arguments.json:
        document = {**found.to_json(), "ok": ok}
        if arguments.evidence:
            document["evidence"] = [check.to_json() for check in checks]
        show.print_json(document)
        return 0 if ok else 1
    if found.reconstruction:
        _print_reconstruction(found)
    for finding in found.findings:
        show.line(f"{'error' if finding.serious else 'untidy'}: {finding.message}")
    for name in found.damaged:
        show.line(f"error: tensor {name} does not have the checksum it was written with")
    _print_verdict(found)
    if arguments.evidence and found.ok:
        _print_checks(checks)
    return 0 if ok else 1


def _runtime(arguments: argparse.Namespace) -> int:
    from kvant.api.runtime_check import check_runtime

    if arguments.against is not None or arguments.evidence:
        raise UsageError("--runtime compares a model with itself; give it alone.")
    with show.token_progress("running") as progress:
        found = check_runtime(
            arguments.file,
            runner=None if arguments.runtime == "own" else arguments.runtime,
            text=arguments.text,
            threads=arguments.threads,
            progress=progress,
        )
    if arguments.json:
        show.print_json(found.to_json())
        return 0 if found.ok else 1
    word, value = ("divergence", found.kld) if found.quantised else ("logits", found.relative)
    show.line(
        f"{found.path}: {found.runtime} against the weights as kvant decodes them, "
        f"{found.tokens} tokens"
    )
    show.line(
        f"logits differ by {found.relative:.2e} of their size (worst row "
        f"{found.relative_worst:.2e}), KL divergence {found.kld:.2e} (worst {found.kld_max:.2e}), "
        f"same top token {found.same_top:.2%}"
    )
    verdict = "agrees" if found.ok else "error: does not agree"
    print(f"{verdict}: {word} {value:.2e}, expected at most {found.bound:.0e}")
    return 0 if found.ok else 1


def _evidence(arguments: argparse.Namespace) -> tuple[Check, ...]:
    from kvant.api.evidence_check import check_evidence

    with show.token_progress("measuring") as progress:
        return check_evidence(
            arguments.file,
            arguments.against,
            text=arguments.text,
            threads=arguments.threads,
            progress=progress,
        )


def _print_checks(checks: tuple[Check, ...]) -> None:
    for check in checks:
        if check.ok is None:
            told = " ".join(filter(None, (check.stated, check.found)))
            show.line(f"not checked: {check.what}: {told}")
        elif not check.ok:
            show.line(f"error: {check.what}: stated {check.stated}, found {check.found}")
        elif " on " in check.what and "chunks" not in check.what:
            show.line(f"{check.what}: stated {check.stated}, found {check.found}")
    bad = sum(check.ok is False for check in checks)
    good = sum(check.ok is True for check in checks)
    verdict = f"evidence: {bad} of {bad + good} wrong" if bad else f"evidence: all {good} hold"
    print(f"{verdict}, {len(checks) - bad - good} not checked")


def _print_reconstruction(found: Verification) -> None:
    rows = [
        (r.name, r.source_type, r.packing, f"{r.relative:.3e}", f"{r.rmse:.3e}", f"{r.largest:.3e}")
        for r in found.reconstruction
    ]
    header = ("tensor", "source", "packing", "relative", "rmse", "largest")
    show.print_table(show.table(header, rows))
    print()


def _print_verdict(found: Verification) -> None:
    checksums = {
        "good": "all checksums good",
        "bad": f"{len(found.damaged)} bad checksums",
        "none": "no checksums in the file (another tool wrote it)",
        "stale": "no checksums of this file (another tool made it from one of kvant's)",
    }[found.checksums]
    verdict = "sound" if found.ok else "damaged"
    print(f"{found.path}: {verdict}; {found.tensors} tensors, {found.nbytes:,} bytes, {checksums}")
