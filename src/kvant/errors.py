"""Every error kvant raises on purpose.

``str(error)`` is the whole message for a user: what went wrong, what was expected, what was
found, and what to do about it, in one or two sentences. The command line prints it and exits
with status 1; anything that is not a ``KvantError`` is a bug in kvant.

::

    KvantError
    ├── InputError               something read is not usable
    │   ├── FileFormatError      a file is not what its format says (truncated, damaged, hostile)
    │   ├── UnsupportedError     well-formed, but kvant does not know it (architecture, type, value)
    │   └── DataError            the numbers themselves: NaN or infinity in weights
    ├── UsageError               the request makes no sense (unknown recipe, bad option value)
    ├── MissingExtraError        an optional package is not installed
    └── OutputError              nothing was written (exists already, no space, no permission)
"""

from __future__ import annotations

__all__ = [
    "DataError",
    "FileFormatError",
    "InputError",
    "KvantError",
    "MissingExtraError",
    "OutputError",
    "UnsupportedError",
    "UsageError",
]


class KvantError(Exception):
    """Base of all errors meant for the user."""


class InputError(KvantError):
    """Something that was read cannot be used."""


class FileFormatError(InputError):
    """A file is not what its format says: truncated, damaged or hostile."""


class UnsupportedError(InputError):
    """The input is well-formed, but kvant does not know this architecture, type or value."""


class DataError(InputError):
    """The weights themselves are bad: NaN or infinity."""


class UsageError(KvantError):
    """The request makes no sense: an unknown recipe, a bad option value, an empty text."""


class MissingExtraError(KvantError):
    """An optional package is not installed; the message names the extra that brings it."""


class OutputError(KvantError):
    """The output cannot be written: it exists, or there is no space or permission."""
