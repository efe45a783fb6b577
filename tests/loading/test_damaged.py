"""Errors that name several files."""

import pickle

from loading.damaged import DamagedFiles, attempt, each
from runtime.errors import UserError


def test_ten_problems_are_named_and_the_others_counted():
    sentences = [f"file {i} is damaged" for i in range(12)]
    ten = "; ".join(sentences[:10])
    assert str(DamagedFiles(sentences)) == f"12 image files or folders cannot be used: {ten}; 2 more"
    assert str(DamagedFiles(sentences[:10])) == f"10 image files or folders cannot be used: {ten}"
    assert str(DamagedFiles(sentences[:1])) == "file 0 is damaged"


def test_the_error_reaches_another_process():
    """Exceptions travel between processes as pickles."""
    error = pickle.loads(pickle.dumps(DamagedFiles(["a is damaged", "b is damaged"])))
    assert error.problems == ["a is damaged", "b is damaged"] and "a is damaged; b is damaged" in str(error)


def test_results_and_problems():
    def halved(number):
        if number % 2:
            raise UserError(f"{number} is odd")
        return number // 2

    assert attempt(halved, [1, 2, 3, 4]) == ([1, 2], ["1 is odd", "3 is odd"]) and each(halved, [2, 4]) == [1, 2]
    nested = attempt(lambda numbers: each(halved, numbers), [[1, 2, 3], [4, 6], [5]])
    assert nested == ([[2, 3]], ["1 is odd", "3 is odd", "5 is odd"])
