"""What configs of mixtures of experts share."""

from __future__ import annotations

from dataclasses import dataclass

from kvant.arch._config import DecoderConfig
from kvant.arch._fields import count
from kvant.errors import FileFormatError

__all__ = ["ExpertFields"]


@dataclass(frozen=True, kw_only=True)
class ExpertFields(DecoderConfig):
    """How many experts there are, and how many of them a token uses."""

    num_experts: int = count(
        "num_experts", "expert_count", most=2**12, other_names=("num_local_experts",)
    )
    num_experts_per_tok: int = count("num_experts_per_tok", "expert_used_count", most=2**12)

    def check(self, where: str) -> None:
        """Also refuse more experts for a token than there are.

        Raises:
            FileFormatError: says both numbers.
        """
        super().check(where)
        if self.num_experts_per_tok > self.num_experts:
            raise FileFormatError(
                f"{where}: a token should use at most the {self.num_experts} experts there are, "
                f"got {self.num_experts_per_tok}. Correct the config, or fetch the file again."
            )
