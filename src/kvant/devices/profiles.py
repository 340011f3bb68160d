"""Known devices: memory, bandwidth, processors, and where each figure comes from."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from kvant.errors import UsageError

__all__ = ["Device", "device_named", "devices"]

_GB = 10**9


@dataclass(frozen=True, slots=True)
class Device:
    """One device with one size of memory.

    ``bandwidth`` is the specification's, in bytes a second, and ``achieved`` the share of it that
    reading in order reaches, from and to. ``os_share`` of the memory is taken by other things.
    Peaks are int8 operations a second of all large cores together; 0 where a graphics processor
    runs prompts, of which kvant has measured none.
    """

    name: str
    title: str
    kind: str
    ram: int
    bandwidth: float
    achieved: tuple[float, float]
    cores: int
    ghz: float
    compute: str
    peak: float
    os_share: float
    engine: str
    format: str
    source: str
    note: str = ""

    @property
    def usable(self) -> int:
        """Bytes a model may take."""
        return int(self.ram * (1 - self.os_share))

    def to_json(self) -> dict[str, object]:
        """As plain data; bytes and bytes a second."""
        return {**asdict(self), "achieved": list(self.achieved), "usable": self.usable}


@cache
def devices() -> tuple[Device, ...]:
    """All known devices, one for each size of memory."""
    document = json.loads((files("kvant.devices") / "profiles.json").read_text("utf-8"))
    return tuple(
        _device(row, ram, document["classes"])
        for row in document["devices"]
        for ram in row["ram_gb"]
    )


def _device(row: dict[str, Any], ram: int, classes: dict[str, Any]) -> Device:
    several = len(row["ram_gb"]) > 1
    return Device(
        name=f"{row['name']}-{ram}gb" if several else row["name"],
        title=f"{row['title']}, {ram} GB",
        kind=row["kind"],
        ram=ram * _GB,
        bandwidth=row["bandwidth_gbs"] * 1e9,
        achieved=(row["achieved"][0], row["achieved"][1]),
        cores=row["cores"],
        ghz=row["ghz"],
        compute=row["compute"],
        peak=classes[row["compute"]]["ops"] * row["cores"] * row["ghz"] * 1e9,
        os_share=row["os_share"],
        engine=row["engine"],
        format=row["format"],
        source=row["source"],
        note=row["note"],
    )


def device_named(name: str) -> Device:
    """The device called ``name``, in any case.

    Raises:
        UsageError: there is none, or there are several sizes of memory; the message names them.
    """
    wanted = name.lower().replace(" ", "-").replace("_", "-")
    by_name = {d.name: d for d in devices()}
    if wanted in by_name:
        return by_name[wanted]
    sizes = [n for n in by_name if n.rpartition("-")[0] == wanted and n.endswith("gb")]
    if sizes:
        raise UsageError(f"{name!r} is sold with several sizes of memory: {', '.join(sizes)}.")
    near = difflib.get_close_matches(wanted, by_name, 3, 0.5)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    raise UsageError(
        f"There is no device called {name!r}; `kvant devices` lists them, and --ram 4GB describes "
        f"any other.{hint}"
    )
