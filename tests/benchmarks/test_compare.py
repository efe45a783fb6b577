"""What the benchmarks share, and the tables that they print."""

import importlib
import re

import pytest
import torch

from benchmarks import compare
from methods import METHODS

CPU = torch.device("cpu")


def test_peak_memory():
    def work():
        a = torch.zeros(1000)
        b = torch.zeros(2000)
        del a
        return b, torch.zeros(500)

    assert compare.peak_memory(work, CPU) == 4 * 3000


def test_each_contender_begins_in_turn():
    calls = []
    seconds = compare.in_turns({name: lambda name=name: calls.append(name) for name in "abc"}, 4, CPU)
    assert "".join(calls) == "abc" "bca" "cab" "abc"
    assert all(len(times) == 4 and min(times) > 0 for times in seconds.values())
    assert compare.ratio([2, 9, 4], [1, 3, 4]) == "2.000 (1.000 .. 3.000)"


STEP = "step --model resnet8 --batch_size 8 --rounds 1"
LOADER = "loader --batch_size 8 --repeats 2 --images 48 --plain_images 24 --workers"


@pytest.mark.parametrize(("command", "rows"), [
    (f"{STEP} --steps 2 --ours --method ONE --amp bf16", ["ONE"]),
    (f"{STEP} --method all", [*METHODS, "OKDDip, plain"]),
    (f"{LOADER} 1", ["plain (PIL)", "cached", "streamed"]),
    (f"{LOADER} 0 --views 3", ["plain (PIL)", "cached", "streamed", "cached, 3 views", "streamed, 3 views"]),
    (f"{LOADER} 0 --large 8", ["plain (PIL)", "pil", "fast", "fast, uint8"])])
def test_a_benchmark_prints_its_table(command, rows, capsys):
    """A line for each version: its median, the ratio with its spread, and memory or images."""
    name, *flags = command.split()
    importlib.import_module(f"benchmarks.{name}").main([*flags, "--device", "cpu"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"torch {torch.__version__}, cpu")
    line = r"^(\S.*?)  +[\d.,]+  +(?:1|[\d.]+ \([\d.]+ \.\. [\d.]+\))  +[\d.,]+$"
    assert sorted(re.findall(line, printed, re.MULTILINE)) == sorted(rows)
