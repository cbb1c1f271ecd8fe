"""Ctrl-C: once stops after the step in progress and goes on to the outputs, twice quits at once."""
import signal
import sys
import threading
from types import FrameType


class Stopped(Exception):
    """Raised between two steps, where everything is in order, when the user has asked to stop."""


class CtrlC:
    """While open, the first SIGINT only sets `asked`; the second raises KeyboardInterrupt as usual.

    Outside the main thread, which alone may handle signals, it does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before = None

    def __enter__(self) -> "CtrlC":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        told = "Stopping after this step; what there is will be written. Ctrl-C again quits at once."
        print(told, file=sys.stderr, flush=True)

    def check(self, done: int, total: int) -> None:
        """Called after a step. Raises: Stopped if the user has asked to and steps remain."""
        if self.asked and done < total:
            raise Stopped
