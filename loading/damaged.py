"""Files that cannot be used: one error names several of them."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from runtime.errors import UserError

NAMED = 10
Item, Result = TypeVar("Item"), TypeVar("Result")


def first_of(words: list[str], separator: str = ", ") -> str:
    """The first ten, and how many more there are."""
    more = [f"{len(words) - NAMED} more"] if len(words) > NAMED else []
    return separator.join(words[:NAMED] + more)


class DamagedFiles(UserError):
    """problems: a sentence about each file or folder. The message has ten of them, and their number."""

    def __init__(self, problems: list[str]):
        super().__init__(problems)  # so it can be pickled, for other processes
        self.problems = problems

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return f"{len(self.problems)} image files or folders cannot be used: {first_of(self.problems, '; ')}"


def attempt(function: Callable[[Item], Result], items: Iterable[Item]) -> tuple[list[Result], list[str]]:
    """-> function(item) of each item, and a sentence about each file or folder for which it raised UserError."""
    results, problems = [], []
    for item in items:
        try:
            results.append(function(item))
        except UserError as error:
            problems += error.problems if isinstance(error, DamagedFiles) else [str(error)]
    return results, problems


def each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """function(item) of each item. If it raises UserError for some of them, DamagedFiles has all of their sentences."""
    results, problems = attempt(function, items)
    if problems:
        raise DamagedFiles(problems)
    return results
