"""The errors that prunewatch raises on purpose.

Each names what is wrong (`field`), says it (`problem`) and what to do (`hint`). Transports map the classes to their own
codes in one table; nothing else is ever shown to a caller.
"""

from __future__ import annotations


class PrunewatchError(Exception):
    """Base of all errors that a user can cause or mend.

    Args:
        problem: One sentence: what is wrong.
        field: The argument, column, file or setting it is about, as the user spelled it.
        hint: What to do about it.
    """

    def __init__(self, problem: str, *, field: str = "", hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.field = field
        self.hint = hint

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        todo = f" {self.hint}" if self.hint else ""
        return f"{where}{self.problem}{todo}"


class InvalidInputError(PrunewatchError):
    """The caller's input can not be used as it is."""


class NotFoundError(PrunewatchError):
    """The named detector, version, file or operation does not exist."""


class AlreadyExistsError(PrunewatchError):
    """The name is taken."""


class PreconditionError(PrunewatchError):
    """The input is fine, the state of the detector or store is not (pinned, learning, no history, ...)."""


class ConflictError(PrunewatchError):
    """Somebody else changed the same thing first."""


class ExhaustedError(PrunewatchError):
    """A limit that was set on purpose is reached (series, detectors, queue)."""


class OverloadedError(ExhaustedError):
    """There is too much to do at this moment.

    Args:
        problem: As of every error.
        field: The same.
        hint: The same.
        retry_seconds: When to come again.
    """

    def __init__(self, problem: str, *, field: str = "", hint: str = "", retry_seconds: float = 1.0) -> None:
        super().__init__(problem, field=field, hint=hint)
        self.retry_seconds = retry_seconds


class EndingError(PrunewatchError):
    """The process is about to end and begins nothing new."""


class DeadlineError(PrunewatchError):
    """A call came too late to be begun: nobody waits for its answer any more."""


class DeniedError(PrunewatchError):
    """Whoever asks is not who it says, or may not do this."""


class StoreInUseError(PreconditionError):
    """Another process holds the store."""


class NewerStoreError(PreconditionError):
    """The store or bundle was written by a newer prunewatch."""


class CorruptBundleError(PrunewatchError):
    """A bundle's files are not what its manifest says."""


class MissingExtraError(PreconditionError):
    """The command needs packages that the base install does not have."""


def disk_full() -> ExhaustedError:
    """What is said wherever the store can not be written because its disk is full."""
    return ExhaustedError(
        "the disk that holds the store is full.", field="store", hint="Free some space and ask again."
    )
