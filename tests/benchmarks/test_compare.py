"""What the benchmarks share, and the tables that they print."""

import re

import pytest
import torch

from benchmarks import compare

CPU = torch.device("cpu")


def test_peak_memory():
    def work():
        a = torch.zeros(1000)
        b = torch.zeros(2000)
        del a
        return b, torch.zeros(500)

    assert compare.peak_memory(work, CPU) == 4 * 3000
    kept = [torch.zeros(10**6)]

    def free_an_earlier_tensor():
        kept.clear()
        return torch.zeros(1000)

    assert compare.peak_memory(free_an_earlier_tensor, CPU) == 4 * 1000


def test_in_turns_lets_each_contender_begin():
    calls = []
    seconds = compare.in_turns({name: lambda name=name: calls.append(name) for name in "abc"}, 4, CPU)
    assert "".join(calls) == "abc" "bca" "cab" "abc"
    assert all(len(times) == 4 and min(times) > 0 for times in seconds.values())


def test_ratio():
    assert compare.ratio([2, 9, 4], [1, 3, 4]) == "2.000 (1.000 .. 3.000)"


TINY = {
    "step.py": ["--model", "resnet8", "--batch_size", 8, "--pairs", 2],
    "loader.py": ["--images", 48, "--plain_images", 24, "--batch_size", 8, "--repeats", 2, "--workers", 1],
    "evaluate.py": ["--model", "resnet8", "--images", 24, "--plain_images", 8, "--batch_size", 8, "--repeats", 2],
}
ROWS = {
    "step.py": ["plain", "ours"],
    "loader.py": ["plain (PIL)", "cached", "streamed"],
    "evaluate.py": ["forward passes only", "ours", "plain"],
}


@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_prints_its_table(script, name):
    done = script(f"benchmarks/{name}", *TINY[name], "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"torch {torch.__version__}, cpu")
    for row in ROWS[name]:  # median, ratio to the reference, memory
        assert re.search(rf"^{re.escape(row)} +[\d.,]+ +(1|[\d.]+ \([\d.]+ \.\. [\d.]+\)) +[\d.]+", done.stdout, re.M)
    assert len({line.rfind("MiB") for line in done.stdout.splitlines() if "MiB" in line}) == 1
    if name == "step.py":
        assert re.search(r"forward [\d.]+ ms, backward [\d.]+ ms, optimizer [\d.]+ ms, metrics [\d.]+ ms", done.stdout)
