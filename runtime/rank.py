"""The rank of this process and the number of processes, from torchrun's environment variables. Needs no PyTorch."""

import os


def launched() -> bool:
    """Whether torchrun started this process. It sets all four variables; some of them alone mean nothing."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def number(name: str, default: int) -> int:
    """A variable of torchrun; the default without torchrun."""
    return int(os.environ[name]) if launched() else default


def rank() -> int:
    """The number of this process, from 0."""
    return number("RANK", 0)


def world_size() -> int:
    """The number of processes; 1 without torchrun."""
    return number("WORLD_SIZE", 1)


def is_main() -> bool:
    """Whether this process writes files: the first one, or the only one."""
    return rank() == 0
