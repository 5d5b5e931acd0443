"""What medseg raises towards its users: what is wrong, what was got, what to do; and the file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


class MedsegError(Exception):
    """Base of all errors that a user can mend. The command line prints it and exits with 2."""


class ConfigError(MedsegError):
    """A mistake in a configuration.

    Args:
        message: What is wrong, what was got, what to do.
        path: Where in the config, e.g. `("model", "encoder", "widths")`, if known.
    """

    def __init__(self, message: str, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.path = path


class ToldElsewhereError(MedsegError):
    """Another process of the same training failed and tells why; this one ends without a word."""


class PluginError(MedsegError):
    """A plugin that cannot be found or imported, or that breaks its contract."""


class DataError(MedsegError):
    """A file or a set of files that cannot be used.

    Args:
        source: The file (or folder) at fault. It opens the message.
        reason: What is wrong, what was got, what to do.
    """

    def __init__(self, source: str | Path, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = str(source)
        self.reason = reason

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str]]:
        """Pickle by both arguments, so that it crosses from a DataLoader worker."""
        return DataError, (self.source, self.reason)


class DataErrors(MedsegError):  # noqa: N818  (a plural)
    """Several data errors at once. The text lists them, one per line.

    Args:
        errors: What was found, in order.
    """

    def __init__(self, errors: Iterable[DataError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(str(error) for error in self.errors))

    def __reduce__(self) -> tuple[type[DataErrors], tuple[tuple[DataError, ...]]]:
        """Pickle by the errors, so that it crosses from a DataLoader worker."""
        return DataErrors, (self.errors,)


def raise_all(errors: Sequence[DataError]) -> None:
    """Raise what was collected: nothing, the one error itself, or all of them at once."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise DataErrors(errors)
