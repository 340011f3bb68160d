"""Energy that processors took, where the system tells it.

Linux has the counters of Intel's and AMD's processors under ``/sys/class/powercap`` (RAPL), most
often for root only; virtual machines have none. Source: Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["EnergyMeter"]

_POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """The counters of all processor packages."""

    def __init__(self, root: Path = _POWERCAP) -> None:
        # intel-rapl:0 is a package; intel-rapl:0:0 is a part of it and counted within it.
        packages = [p for p in sorted(root.glob("intel-rapl:*")) if p.name.count(":") == 1]
        self._wraps = {
            package: wrap
            for package in packages
            if _number(package / "energy_uj") is not None
            and (wrap := _number(package / "max_energy_range_uj")) is not None
        }

    def read(self) -> Mapping[Path, int] | None:
        """Microjoules by package, counted from some moment; None where they cannot be read."""
        found = {package: _number(package / "energy_uj") for package in self._wraps}
        read = {package: value for package, value in found.items() if value is not None}
        return read if read and len(read) == len(found) else None

    def joules(
        self, before: Mapping[Path, int] | None, after: Mapping[Path, int] | None
    ) -> float | None:
        """What was taken between two readings; the counters wrap round every minute or hour."""
        if before is None or after is None:
            return None
        return sum((after[p] - before[p]) % (self._wraps[p] + 1) for p in before) / 1e6


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
