"""A quick share of fuzz.py and damage.py. Both also run by themselves, with more."""

from damage import damage
from fuzz import fuzz


def test_random_command_lines_are_accepted_or_refused():
    counts = fuzz(lines=60, real=1)
    assert sum(counts.values()) == 61 and {result for _, result in counts} == {"accepted", "refused"}


def test_damaged_files_are_refused_or_right(tmp_path):
    counts = damage(tmp_path, damages=10)
    assert sum(counts.values()) == 50 and all(counts[name, "refused"] > 5 for name, _ in counts)
