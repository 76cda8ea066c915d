"""The errors a user can meet: a message that names what came, what was expected, the remedy."""

from __future__ import annotations


class TmaError(Exception):
    """Base of all errors that this package raises on purpose.

    In a notebook only the message is shown: the traceback would point into library code that the
    reader can do nothing about.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class ParameterError(TmaError, ValueError):
    """A setting has a value that cannot be used."""


class AssetError(TmaError, OSError):
    """A file that comes inside a package wheel could not be fetched, or is not the one expected."""


class DataError(TmaError, ValueError):
    """A dataset cannot be read, or a row of it cannot be used."""


class OrderError(TmaError, RuntimeError):
    """Training consumed other instances, or in another order, than it was given."""


class TrainingError(TmaError, RuntimeError):
    """A loss became NaN or infinite; the message names the step and the instances."""
