"""Every error that Linegate raises on purpose.

    LinegateError
    ├── SettingsError        a settings file or an option is wrong
    ├── ImageError           bytes or pixels that cannot be judged (carries the reason code)
    ├── DataError            a data set that cannot be trained or measured on
    ├── PackageError         a model package that must not be used
    │   └── ParityError      it computes other numbers here than where it was made
    ├── ProviderError        no such way to run a model on this machine
    ├── AccessError          a login, a user or a token is refused (carries the HTTP status)
    └── StationError         the station cannot start or go on
        └── StoreError       the store refused, or holds something else than it should

The text of each is one line for a person: what is wrong, where, and how to mend it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from linegate.stages import Reason


class LinegateError(Exception):
    """Base of all errors that are told to the user in one line, without a traceback."""


class SettingsError(LinegateError):
    """A settings file, an option or an environment variable is wrong."""


class ImageError(LinegateError):
    """An image cannot be judged; `reason` is the code that its verdict carries."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class DataError(LinegateError):
    """A data set cannot be used for training or measuring."""


class PackageError(LinegateError):
    """A model package is missing, damaged, or of a version that this Linegate does not read."""


class ParityError(PackageError):
    """A model package gives other scores here than where it was made."""


class ProviderError(LinegateError):
    """The execution provider that was asked for is not to be had on this machine."""


class AccessError(LinegateError):
    """A login, a user, a session or a token is refused, and nothing was changed; `status` is that of HTTP."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


class StationError(LinegateError):
    """The station cannot start, or cannot go on."""


class StoreError(StationError):
    """The store refused a write, is in use by another station, or belongs to another one."""
