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
    │   └── ContextError         a text is longer than the model's context
    ├── CacheFullError           no room for more keys and values
    ├── NotEnoughMemoryError     said before anything is loaded
    ├── MissingExtraError        an optional package is not installed
    └── OutputError              nothing was written (exists already, no space, no permission)
"""

from __future__ import annotations

__all__ = [
    "CacheFullError",
    "ContextError",
    "DataError",
    "FileFormatError",
    "InputError",
    "KvantError",
    "MissingExtraError",
    "NotEnoughMemoryError",
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


class NoTokenError(DataError):
    """What was asked of a text leaves no token that may come next."""


class UsageError(KvantError):
    """The request makes no sense: an unknown recipe, a bad option value, an empty text."""


class ContextError(UsageError):
    """A text is longer than the model's context: ``needed`` and ``context``, in tokens."""

    def __init__(self, needed: int, context: int, message: str | None = None) -> None:
        super().__init__(
            message
            or f"The text takes {needed:,} tokens, the model's context is {context:,}. Shorten it; "
            "nothing was cut off silently."
        )
        self.needed, self.context = needed, context


class CacheFullError(KvantError):
    """The cache of keys and values has no room for the tokens; nothing was changed."""


class NotEnoughMemoryError(KvantError):
    """A model and its cache do not fit into memory; nothing was loaded."""


class MissingExtraError(KvantError):
    """An optional package is not installed; the message names the extra that brings it."""


class OutputError(KvantError):
    """The output cannot be written: it exists, or there is no space or permission."""
