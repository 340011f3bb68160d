"""``kvant quantize SRC --fit | --bpw | --max-kld``: the budget's options, and what they start."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvant.cli import show
from kvant.cli.artefact import print_artefact
from kvant.cli.options import byte_size, target_settings
from kvant.errors import UsageError

if TYPE_CHECKING:
    from kvant.api.fitted import Fitted

__all__ = ["add_budgets", "add_search", "check_budgets", "run_budget"]


def add_budgets(parser: argparse.ArgumentParser) -> None:
    """Options that take the place of a recipe, and those that go with them."""
    group = parser.add_argument_group("a budget instead of RECIPE (exactly one of the three)")
    group.add_argument(
        "--fit", type=byte_size, metavar="SIZE", help="most bytes of the file, such as 650MB"
    )
    group.add_argument("--bpw", type=float, metavar="X", help="most bits per weight, such as 3.5")
    group.add_argument(
        "--max-kld", type=float, metavar="X", help="largest mean KL divergence, nats a token"
    )
    add_search(group)
    group.add_argument(
        "--validation",
        metavar="FILE",
        help="UTF-8 text that --max-kld is measured on (default: the built-in evaluation text)",
    )


def add_search(group: argparse._ArgumentGroup) -> None:
    """Options of every search."""
    group.add_argument(
        "--packings",
        default=None,
        metavar="LIST",
        help="what tensors may get: fast (default), all, or names such as Q3_K,Q4_K,Q6_K",
    )
    group.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="UTF-8 text to measure tensors on, and its share; may be given several times "
        "(default: the built-in calibration text)",
    )


def check_budgets(arguments: argparse.Namespace) -> bool:
    """Whether a budget is given; exactly one of RECIPE and the budgets has to be.

    Raises:
        SystemExit: it is not so; usage and message are printed.
        UsageError: an option has no meaning beside RECIPE.
    """
    budgets = {
        "--fit": arguments.fit,
        "--bpw": arguments.bpw,
        "--max-kld": arguments.max_kld,
    }
    given = [name for name, value in budgets.items() if value is not None]
    if arguments.recipe is not None:
        given.insert(0, f"the recipe {arguments.recipe}")
    if len(given) != 1:
        arguments.refuse(  # as argparse would, if it knew of positional ones among them
            "expected exactly one of RECIPE, --fit, --bpw and --max-kld, "
            f"got {' and '.join(given) or 'none'}"
        )
    if arguments.recipe is None:
        return True
    for option, value in (
        ("--packings", arguments.packings),
        ("--validation", arguments.validation),
    ):
        if value:
            raise UsageError(f"{option} goes with a budget; a recipe says it all by itself.")
    return False


def run_budget(arguments: argparse.Namespace) -> int:
    """Search, write, report."""
    from kvant.api.calibration import text_and_weight
    from kvant.api.within import quantize_within
    from kvant.api.without_effect import refuse_without_effect

    refuse_without_effect(
        {"--tokens": arguments.tokens, "--max-memory": arguments.max_memory},
        "goes with RECIPE; leave it out with a budget.",
    )
    with show.step_progress("quantize") as progress:
        fitted = quantize_within(
            arguments.source,
            arguments.output,
            to=arguments.to,
            fit=arguments.fit,
            bpw=arguments.bpw,
            max_kld=arguments.max_kld,
            effort=arguments.effort or "balanced",
            packings=packings_of(arguments),
            texts=[text_and_weight(t) for t in arguments.text],
            importance=arguments.importance,
            lora=arguments.lora,
            validation=arguments.validation,
            tensors=arguments.tensor,
            dtype=arguments.dtype,
            settings=target_settings(arguments.set),
            verify=arguments.verify,
            save_recipe=arguments.save_recipe,
            threads=arguments.threads,
            split_size=arguments.split_size,
            pre_tokenizer=arguments.pre_tokenizer,
            evidence=arguments.evidence,
            force=arguments.force,
            dry_run=arguments.dry_run,
            progress=progress,
        )
    if arguments.json:
        for sentence in fitted.artefact.notes:
            show.note(f"note: {sentence}")
        show.print_json(fitted.to_json())
        return 0
    print_artefact(fitted.artefact, as_json=False, recipe_file=arguments.save_recipe)
    _print_search(fitted, arguments)
    return 0


def packings_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """``--packings`` as names."""
    given = arguments.packings
    if given is None:
        return ("fast",)
    return tuple(part for part in given.replace(",", " ").split() if part)


def _print_search(fitted: Fitted, arguments: argparse.Namespace) -> None:
    found = fitted.sensitivity
    expected = f"expected KL divergence {fitted.expected_kld:.5f} nats a token"
    if found.effort == "fast":
        show.note(f"{expected}, a guess: --effort fast measures nothing")
    else:
        show.note(
            f"{expected}, from {len(found.tensors)} tensors measured on {found.tokens:,} tokens "
            f"in {found.seconds:.0f} s; `kvant eval` measures the file"
        )
    if fitted.measured is not None:
        result = fitted.measured
        kind = "measured" if fitted.artefact.seconds is not None else "measured on a trial"
        show.note(
            f"{kind}: KL divergence {result.kld:.5f} ± {result.kld_se:.5f}, "
            f"limit {arguments.max_kld:g}"
        )
