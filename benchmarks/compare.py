"""Shared by the benchmarks: timing in turns, peak memory of tensors, random images, tables."""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from tabulate import tabulate

import methods
import utils
from data_loader import Data, Split
from runtime.device import environment, pick_device, seed_everything, set_precision, timed
from training.method import Method


def parser(description: str) -> argparse.ArgumentParser:
    """The flags of every benchmark."""
    p = argparse.ArgumentParser(description=description.partition("\n")[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--batch_size", default=128, type=utils.number(int, 2), help="images in a batch")
    p.add_argument("--device", default="auto", help="cuda, cpu, ...; auto: the GPU if there is one, else the CPU")
    p.add_argument("--seed", default=0, type=utils.number(int, 0), help="fixes weights and images")
    return p


def start(args: argparse.Namespace, tf32: bool = False) -> torch.device:
    """Set seed and precision, print the machine; -> the device."""
    seed_everything(args.seed)
    set_precision(tf32)
    device = pick_device(None if args.device == "auto" else args.device)
    machine = environment(device)
    print(f"torch {machine['torch']}, {machine['device']}, revision {machine['revision'][:12]}")
    return device


def method(name: str, num_classes: int, **flags) -> Method:
    """A method of methods.py with the defaults of its script, except ``flags``."""
    cls, defaults = methods.find(name)
    return cls(argparse.Namespace(**vars(defaults) | flags), num_classes)


def random_data(train: int, test: int, seed: int) -> Data:
    """Random images in the shape of CIFAR-10, with its means and deviations."""
    rng = np.random.default_rng(seed)
    parts = [Split(rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, n)) for n in (train, test)]
    return Data(*parts, [str(c) for c in range(10)], (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def in_turns(contenders: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each contender in each round.

    The speed of a machine drifts, so every round measures all contenders, and each of them is first in some rounds.
    """
    names, seconds = list(contenders), {name: [] for name in contenders}
    for r in range(rounds):
        first = r % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(timed(contenders[name], device))
    return seconds


def ratio(of: list[float], to: list[float]) -> str:
    """Median, minimum and maximum of the ratios of all rounds; 1 if both are the same list."""
    if of is to:
        return "1"
    ratios = [a / b for a, b in zip(of, to, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} .. {max(ratios):.3f})"


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """The peak of the bytes that ``work`` allocates for tensors, with the workspaces of the libraries."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    with TemporaryDirectory() as folder:  # only the profiler's trace has the order of allocations
        path = Path(folder, "trace.json")
        profile.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
    return max(accumulate(event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])))


def table(header: tuple[str, ...], *rows: tuple[str, ...]) -> str:
    """A text table. The first column is aligned to the left, the others to the right."""
    return tabulate(rows, header, "plain", colalign=("left", *["right"] * (len(header) - 1)), disable_numparse=True)


def must_agree(what: str, found: dict[str, float], expected: dict[str, float], relative: float) -> None:
    """Exit with an error if a number found differs from the expected one of that name.

    relative: the relative difference that rounding may cause. In a sum of log-probabilities it may also cause 3e-6.
    """
    for name, value in expected.items():
        if not math.isclose(found[name], value, rel_tol=relative, abs_tol=3e-6):
            sys.exit(f"error: {what}: {name} is {found[name]:.6g}, not {value:.6g}")
