"""The rank of this process and the number of processes, from torchrun's environment variables. Needs no PyTorch."""

import os


def launched() -> bool:
    """Whether torchrun started this process. It sets all four variables; some of them alone mean nothing."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def number(name: str, default: int) -> int:
    """A variable of torchrun; the default without torchrun, or if it is not a number (see ``wrong_variable``)."""
    text = os.environ.get(name, "")
    return int(text) if launched() and text.isdecimal() and len(text) <= 10 else default


def rank() -> int:
    """The number of this process, from 0."""
    return number("RANK", 0)


def world_size() -> int:
    """The number of processes; 1 without torchrun."""
    return number("WORLD_SIZE", 1)


def is_main() -> bool:
    """Whether this process writes files: the first one, or the only one."""
    return rank() == 0


def wrong_variable() -> str | None:
    """A sentence about the first of torchrun's variables that makes no sense. None if all are right."""
    if not launched():
        return None
    allowed = {"WORLD_SIZE": range(1, 2**31), "RANK": range(world_size()), "LOCAL_RANK": range(2**31),
               "MASTER_PORT": range(1, 2**16)}
    for name, values in allowed.items():
        if name in os.environ and number(name, -1) not in values:
            return (f"the environment variable {name} is {os.environ[name]!r}, but must be a number from {values[0]} "
                    f"to {values[-1]}: start with torchrun, which sets it, or unset it to train in one process")
    if not os.environ["MASTER_ADDR"].strip():
        return "the environment variable MASTER_ADDR is empty: start with torchrun, or unset it to train in one process"
    return None
