"""What can go wrong with names, stores and registries.

::

    KvantError
    ├── InputError
    │   └── NotInStoreError      no model of that name here
    ├── UsageError
    │   └── BadNameError         a text that can be no model's name
    └── RegistryError            a registry refused, failed, or sent what it should not
        ├── AbsentError          it has no such model
        ├── DeniedError          it wants other credentials
        ├── UnreachableError     no connection, or none that goes on
        └── HostileError         what it sent is damaged or malicious; nothing of it was kept
"""

from __future__ import annotations

from kvant.errors import InputError, KvantError, UsageError

__all__ = [
    "AbsentError",
    "BadNameError",
    "DeniedError",
    "HostileError",
    "NotInStoreError",
    "RegistryError",
    "UnreachableError",
]


class NotInStoreError(InputError):
    """There is no model of that name in the store."""


class BadNameError(UsageError):
    """A text that can be no model's name."""


class RegistryError(KvantError):
    """A registry refused, failed, or sent what it should not."""


class AbsentError(RegistryError):
    """The registry has no such model."""


class DeniedError(RegistryError):
    """The registry wants other credentials."""


class UnreachableError(RegistryError):
    """No connection, none that goes on, or none allowed (offline)."""


class HostileError(RegistryError):
    """What came is not what was announced: damaged, or meant to do harm. Nothing was kept."""
