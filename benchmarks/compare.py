"""What the benchmarks share: timing in turns, the peak of tensor memory, random images, a table."""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

import utils
from data_loader import Data, Split


def parser(description: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=description.partition("\n")[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--batch_size", default=128, type=utils.number(int, 2), help="images in a batch")
    p.add_argument("--device", default="auto", help="cuda, cpu, ...; auto: the GPU where there is one, else the CPU")
    p.add_argument("--seed", default=0, type=int, help="fixes weights and images")
    return p


def precision_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--amp", default="off", choices=("off", "bf16", "fp16"), help="networks in half precision")
    p.add_argument("--tf32", action="store_true", help="TF32 in convolutions and matrix products")


def start(args: argparse.Namespace) -> torch.device:
    """Seed, precision and device; prints the machine."""
    utils.seed_everything(args.seed)
    utils.set_precision(getattr(args, "tf32", False))
    name = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    machine = utils.environment(device)
    print(f"torch {machine['torch']}, {machine['device']}, revision {machine['revision'][:12]}")
    return device


def random_data(train: int, test: int, seed: int) -> Data:
    """Noise in the shape of CIFAR-10, with its constants."""
    rng = np.random.default_rng(seed)

    def split(n: int) -> Split:
        return Split(rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, n))

    classes = [str(c) for c in range(10)]
    return Data(split(train), split(test), classes, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


# --- time -----------------------------------------------------------------------------------------------------------


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(contenders: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each contender in each round. A machine grows faster and slower while one waits: only what is
    measured side by side compares, and every contender begins some of the rounds."""
    names, seconds = list(contenders), {name: [] for name in contenders}
    for r in range(rounds):
        first = r % len(names)
        for name in names[first:] + names[:first]:
            synchronise(device)
            begin = time.perf_counter()
            contenders[name]()
            synchronise(device)
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(of: list[float], to: list[float]) -> str:
    """Median, least and greatest of the rounds' ratios."""
    if of is to:
        return "1"
    ratios = [a / b for a, b in zip(of, to, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} .. {max(ratios):.3f})"


# --- memory ---------------------------------------------------------------------------------------------------------


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """Bytes that ``work`` allocates in tensors (workspaces of the libraries included), at the moment it holds most.

    What was there before does not count, nor that it is freed.
    """
    if device.type == "cuda":
        synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    with TemporaryDirectory() as folder:  # of what the profiler offers, only its trace tells one block from another
        path = Path(folder, "trace.json")
        profile.export_chrome_trace(str(path))
        trace = json.loads(path.read_text())["traceEvents"]
    held, total, peak = {}, 0, 0
    for event in sorted((e for e in trace if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        address, size = event["args"]["Addr"], event["args"]["Bytes"]
        if size > 0:
            held[address] = size
            total += size
            peak = max(peak, total)
        else:
            total -= held.pop(address, 0)  # 0: a block from before
    return peak


# --- what is printed ------------------------------------------------------------------------------------------------


def table(*rows: tuple[str, ...]) -> str:
    """Rows of cells, the first column aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in
                               enumerate(zip(row, widths, strict=True))).rstrip() for row in rows)


def mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f}"


def must_agree(what: str, ours: float, plain: float, relative: float, absolute: float = 0.0) -> None:
    """Two versions that compute something else cannot be compared in speed."""
    if not math.isclose(ours, plain, rel_tol=relative, abs_tol=absolute):
        raise SystemExit(f"error: {what} {ours:.6g}, and {plain:.6g} in the plain version")


def tolerance(args: argparse.Namespace) -> float:
    """How far equal computations may lie apart, in relation: rounding, of 24 bits or of 8 to 11."""
    return 1e-3 if args.amp == "off" and not args.tf32 else 3e-2
