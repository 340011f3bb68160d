"""Which config keys an architecture does not know are safe to ignore.

A key that is not known is ignored only if its name has nothing to do with the computation, or its
value says "not used". Everything else is refused: a model that loads and computes something else
is worse than one that does not load.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from kvant.arch._fields import shown
from kvant.errors import UnsupportedError
from kvant.files.source import quote

__all__ = ["check_fixed", "ignored_keys"]

#: Parts of names that stand for something in the forward pass.
_COMPUTES = re.compile(
    r"rope|rotary|attention|attn|norm|bias|softcap|capping|scal|window|expert|moe|router|residual"
    r"|multiplier|logit|clip|alibi|position_emb|activation|act_fn|hidden_act|ssm|mamba|spars|quant"
    r"|conv(?!er[st])|causal|compress|interleave|mup|nextn|mtp|softmax|qk_|kv_|query|gating|lora"
    r"|auto_map"
)
#: Names that match above and still compute nothing: training, outputs, choice of implementation.
_HARMLESS = re.compile(
    r".*(dropout|pdrop).*|.*attn_implementation.*|.*(flash_att|sdpa).*|output_\w+|.*_aux_loss_coef"
    r"|(num_)?logits_to_keep|rope\.scaling\.(finetuned|original_context_length)"
)
#: What besides null means "not used" for keys where it is not false or empty.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "is_causal": (True,),
    "embedding_multiplier": (1,),
    "embedding_scale": (1,),
    "residual_multiplier": (1,),
    "residual_scale": (1,),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "partial_rotary_factor": (1,),
    "rope.scaling.attn_factor": (1,),
    "final_logit_softcapping": (0,),
    "attn_logit_softcapping": (0,),
    "attention.sliding_window": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "num_experts": (0,),
    "num_local_experts": (0,),
}


def ignored_keys(values: Mapping[str, object], known: Collection[str], where: str) -> list[str]:
    """The keys of ``values`` that are not known and do not matter, sorted.

    Raises:
        UnsupportedError: a key that is not known and would change the computation.
    """
    ignored: list[str] = []
    for key in sorted(set(values) - set(known)):
        value = values[key]
        if not _harmless(key, value):
            raise UnsupportedError(_message(key, value, where))
        ignored.append(key)
    return ignored


def check_fixed(
    values: Mapping[str, object], fixed: Mapping[str, tuple[object, ...]], where: str
) -> None:
    """Check keys of which only certain values are supported; a missing key is fine.

    Raises:
        UnsupportedError: another value.
    """
    for key, allowed in fixed.items():
        if key in values and not _is_one_of(values[key], allowed):
            expected = " or ".join(map(shown, allowed))
            raise UnsupportedError(
                f"{where}: {key!r} should be {expected}, got {shown(values[key])}. "
                "kvant does not compute anything else for this architecture yet."
            )


def _harmless(key: str, value: object) -> bool:
    lower = key.lower()
    if not _COMPUTES.search(lower) or _HARMLESS.fullmatch(lower):
        return True
    if lower in _NEUTRAL:
        return value is None or _is_one_of(value, _NEUTRAL[lower])
    if value is None or value is False or value in ("", [], {}):
        return True
    if lower == "auto_map" and isinstance(value, dict):
        # Code beside the weights replaces the architecture only where it names the model itself.
        return not {"AutoModel", "AutoModelForCausalLM"} & set(value)
    return False


def _is_one_of(value: object, allowed: tuple[object, ...]) -> bool:
    # True == 1 in Python, and neither is meant for the other here.
    return any(value == other and (value is True) == (other is True) for other in allowed)


def _message(key: str, value: object, where: str) -> str:
    if key == "quantization_config":
        method = value.get("quant_method") if isinstance(value, dict) else None
        named = f" by {quote(method)}" if isinstance(method, str) else ""
        return (
            f"{where}: expected unquantised weights, these are quantised{named}. "
            "Get the checkpoint this one was made from."
        )
    if key == "auto_map":
        return (
            f"{where}: 'auto_map' says the model is computed by code beside its weights, which "
            "kvant does not run. Remove the key if the architecture is the standard one."
        )
    return (
        f"{where}: {quote(key)} is {shown(value)}, expected no such key: its name says that it "
        "changes the computation, and kvant does not know how. Remove it if the model does not "
        "use it."
    )
