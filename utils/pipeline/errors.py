"""
Errors named by who must act.

What a user can cause is one of these, and the message says how to mend it; anything else that escapes a stage
is a bug and keeps its traceback.

    raise ConfigError('config/demo/40.json: unknown key "modes"', fix='did you mean "mode"?')
"""

import errno
from concurrent.futures.process import BrokenProcessPool


class LockstepError(Exception):
    """
    An expected failure: what is wrong, and in `fix` what to type next. `fields` go into the JSON log
    line.
    """

    exit_code = 4

    def __init__(self, message: str, fix: str = "", **fields: object) -> None:
        super().__init__(message)
        self.fix = fix
        self.fields = fields

    def report(self) -> str:
        """The text for the terminal: the message, and the fix on a line of its own when there is one."""
        return f"{self}\n  fix       {self.fix}" if self.fix else str(self)


class ConfigError(LockstepError):
    """The user must edit a config file or the command line."""

    exit_code = 2


class UpstreamError(LockstepError):
    """Something the stage stands on is missing, stale, tampered or mismatched."""

    exit_code = 3


class DataError(LockstepError):
    """The data itself is damaged or unfit."""

    exit_code = 4


class StageError(LockstepError):
    """The stage could not do its work."""

    exit_code = 4


class Stopped(Exception):
    """
    Somebody asked the stage to stop and everything committed so far is safe; only the runner catches it.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"stopped with exit code {exit_code}")
        self.exit_code = exit_code


OUT_OF_MEMORY = "out of memory"
ALLOCATION_FAILURES = ("can't allocate memory", "not enough memory", "out of memory")  # torch's words for it
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


def lacking_resource(error: BaseException) -> str:
    """What the machine ran out of, or "" when the error is something else."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "a file would exceed the size that the system allows (ulimit -f)"
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return f"{error.filename or 'a folder'} cannot be written ({error.strerror})"
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and any(words in str(error) for words in ALLOCATION_FAILURES):
        return OUT_OF_MEMORY
    return "a worker process died (killed for memory?)" if isinstance(error, BrokenProcessPool) else ""


def exit_code_of(error: BaseException) -> int:
    """What a process leaves with: the code of an expected failure, 4 for want of a resource, 1 for a bug."""
    if isinstance(error, (LockstepError, Stopped)):
        return error.exit_code
    return LockstepError.exit_code if lacking_resource(error) else 1
