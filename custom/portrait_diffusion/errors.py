"""Errors a user can act on: one clear sentence each, with the process exit code it maps to."""


INTERRUPTED = 130
"""Exit code of an interrupted run, which the same command takes up again: 128 and the number of SIGINT."""
UNREAD = 141
"""128 and the number of SIGPIPE, as a shell says it of other tools: ``... | head`` has read enough."""


class PortraitError(Exception):
    """Base of all errors that the command line reports as one sentence without a traceback."""

    exit_code = 1


class UsageError(PortraitError):
    """Bad input: a file, a key, a value. Exit code 2."""

    exit_code = 2


class EnvironmentProblem(PortraitError):
    """Something is missing on this machine (a package, weights, assets). Exit code 3."""

    exit_code = 3


class OutOfMemory(PortraitError):
    """The device ran out of memory; the message names the next smaller setting. Exit code 4."""

    exit_code = 4
