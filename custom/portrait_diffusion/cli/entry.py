"""The entry point: one command to its exit code; every foreseen error becomes a sentence."""
import errno
import os
import select
import shlex
import sys
from collections.abc import Sequence
from typing import TextIO

from ..errors import INTERRUPTED, UNREAD, EnvironmentProblem, PortraitError
from .commands import COMMANDS
from .run import run_command
from .words import fail, program

_DISK_ERRORS = {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.ENOTDIR, errno.ENAMETOOLONG}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. argparse's own errors leave through SystemExit with code 2.

    What nobody reads any more (``... | head``) is dropped without a word, with the exit code `UNREAD`.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
    try:
        try:
            return _answer(argv)
        finally:
            for stream in streams:
                stream.flush()  # here, where it can be answered, rather than when Python ends
    except BrokenPipeError:
        unread = [stream for stream in streams if reader_gone(stream)]
        if not unread:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in unread:
            os.dup2(nowhere, stream.fileno())  # Python flushes what is left when it ends
        os.close(nowhere)
        return UNREAD


def reader_gone(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose other end is closed."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # no file of the operating system
        return False
    if not hasattr(select, "poll"):  # Windows, where such a pipe is told by another error
        return False
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _answer(argv: Sequence[str] | None) -> int:
    """`main`, but for pipes: every foreseen error becomes a sentence and an exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command, rest = (argv[0], argv[1:]) if argv and argv[0] in COMMANDS else ("", argv)
    try:
        return COMMANDS.get(command, run_command)(rest)
    except PortraitError as error:
        return fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return fail("Interrupted.", INTERRUPTED, "")
    except ModuleNotFoundError as error:
        if (error.name or "portrait_diffusion").split(".")[0] == "portrait_diffusion":
            raise
        doctor = shlex.join([*program(), "doctor"])
        return fail(f"The package '{error.name}' is not installed; run: pip install -r requirements.txt ({doctor} "
                    "lists all that is missing).", EnvironmentProblem.exit_code)  # fmt: skip
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = f"'{error.filename}'" if error.filename else "the output folder"
        return fail(f"{where} can't be read or written: {error.strerror}.", EnvironmentProblem.exit_code)
