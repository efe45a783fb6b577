"""One process per run folder."""

import errno
from pathlib import Path

from runtime.errors import UserError, warn

try:
    import fcntl
except ImportError:  # Windows has none; two processes in one folder are not noticed there
    fcntl = None


class Lock:
    """Holds a run's folder until ``release`` or the end of the process. UserError if another process holds it.

    A POSIX record lock: the system drops it however the process ends. The workers of the data loader do not inherit it.
    They would inherit a flock, and they live some seconds longer than a killed process.
    """

    def __init__(self, folder: Path):
        self.file = open(folder / "lock", "a")
        try:
            if fcntl is not None:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                warn(f"{folder} is on a file system without locks ({error.strerror}): make sure that no other process "
                     "trains there")
                return
            self.file.close()
            raise UserError(f"another process is training in {folder}: wait for it, or name this run with "
                            "--version") from error

    def release(self) -> None:
        self.file.close()
