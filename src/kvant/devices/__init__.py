"""What a model needs, what a device has, and which variant fits.

::

    profiles.json    known devices, each with its source      profiles.py   them, by name
    knowledge.json   measurements that advice cites, rules    knowledge.py  them, typed
    predict.py       memory and speed of a variant, before it exists
    recommend.py     the choice, and what to say about it
    machine.py       the machine this runs on
"""

from __future__ import annotations

from kvant.devices.knowledge import USES, quality_of_recipe
from kvant.devices.predict import Memory, Prediction, SpeedRange, Variant, predict
from kvant.devices.profiles import Device, device_named, devices
from kvant.devices.recommend import Advice, NothingFitsError, Wish, advise

__all__ = [
    "USES",
    "Advice",
    "Device",
    "Memory",
    "NothingFitsError",
    "Prediction",
    "SpeedRange",
    "Variant",
    "Wish",
    "advise",
    "device_named",
    "devices",
    "predict",
    "quality_of_recipe",
]
