"""The command line: one photo to a 3D head (`run`), and the commands around it (`commands`).

Exit codes: 0 success, 2 usage (a file, a key, a value), 3 environment (`doctor` says what is missing), 4 out of memory
(the message names a smaller setting), 130 interrupted (the same command goes on), 141 nobody reads the output any more.
"""
from .commands import COMMANDS
from .entry import main

__all__ = ["COMMANDS", "main"]
