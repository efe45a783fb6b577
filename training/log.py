"""The log of a training: train.log and standard output."""

import logging
import sys
from pathlib import Path

log = logging.getLogger("okddip")


def open_log(folder: Path) -> None:
    """Send the log to train.log in ``folder`` and to standard output."""
    log.setLevel(logging.INFO)
    log.handlers = [logging.FileHandler(folder / "train.log", encoding="utf-8"), logging.StreamHandler(sys.stdout)]
    for handler in log.handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
        handler.handleError = lambda record: None  # if the disk is full, the checkpoint's error is enough


def close_log() -> None:
    for handler in log.handlers:
        handler.close()
    log.handlers = []
