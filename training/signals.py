"""Ctrl-C, SIGTERM and SIGHUP: finish the step, save it, end."""

import signal
import threading
import time
from collections.abc import Iterable, Iterator

from runtime import processes

REPEAT = 5  # seconds; torchrun forwards signals, so within this time a second one counts as the first


class Interrupted(Exception):
    """One of the signals came, and the step during which it came is complete."""

    def __init__(self, number: int):
        self.number = number


class Signals:
    """A context in which SIGINT, SIGTERM and SIGHUP are noted; ``watch`` raises Interrupted between two steps.

    SIGHUP, which a closed terminal sends, is left alone if the process ignores it, as under nohup. A second signal ends
    the process at once, as it would without this class.
    """

    number = 0

    def __init__(self):
        self.agreed = processes.greatest(0)

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers in no other thread
            self.old = {number: signal.signal(number, self.note) for number in signals_to_note()}
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        for number, handler in getattr(self, "old", {}).items():
            signal.signal(number, handler)
        if kind in (None, SystemExit):  # after another error a process may be missing, and waiting would never end
            self.agreed()

    def note(self, number: int, frame: object) -> None:
        """The signal handler."""
        if self.number and time.monotonic() - self.since >= (REPEAT if processes.world_size() > 1 else 0):
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not self.number:
            self.number, self.since = number, time.monotonic()

    def watch(self, batches: Iterable) -> Iterator:
        """Yield the batches. After a signal, raise Interrupted before the next batch or after the last one."""
        for batch in batches:
            self.check()
            yield batch
        self.check()

    def check(self) -> None:
        """Raise Interrupted if a signal has come.

        Several processes stop at the same step: the one after the step in which the first process got its signal.
        """
        if processes.world_size() == 1:
            number = self.number
        else:
            number, self.agreed = self.agreed(), processes.greatest(self.number)
        if number:
            raise Interrupted(number)


def signals_to_note() -> list[int]:
    """SIGINT, SIGTERM, and SIGHUP unless it is ignored. Windows has no SIGHUP."""
    hangup = getattr(signal, "SIGHUP", None)
    taken = hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([hangup] if taken else [])]
