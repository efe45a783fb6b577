"""Which of several processes this is. torchrun says so in the environment; PyTorch is not needed to read it."""

import os


def launched() -> bool:
    """Whether torchrun started this process. It sets all four variables; some of them alone mean nothing."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def world_size() -> int:
    """The number of processes; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def is_main() -> bool:
    """Whether this process writes files: the first one, or the only one."""
    return rank() == 0
