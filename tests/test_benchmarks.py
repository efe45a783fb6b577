"""The benchmarks measure what they say: the plain versions compute the same, and known amounts are found."""

import copy
import mmap
import os
import re
from pathlib import Path

import pytest
import torch

import losses
from benchmarks import compare, cost, evaluate, loader, step

CPU = torch.device("cpu")


@pytest.mark.parametrize("method", step.METHODS)
def test_plain_steps_compute_the_same(method):
    """In float64: losses, hits and, as a step's loss depends on the gradients before it, gradients."""
    torch.manual_seed(0)
    build, objective, plain_objective, plain_weight = step.METHODS[method]
    model = build("resnet8", 10, 3).double()
    images, labels = torch.randn(8, 3, 32, 32, dtype=torch.float64), torch.randint(10, (8,))
    plain = step.Plain(copy.deepcopy(model), plain_objective, CPU, "off", plain_weight)
    ours = step.Ours(model, objective, CPU, "off")
    for _ in range(3):
        ours.step(images, labels)
        plain.step(images, labels)
        means = ours.tally.means()
        assert [*means["terms"], *sum(means["hits"], [])] == pytest.approx([s / plain.steps for s in plain.sums], 1e-9)
    assert not any(isinstance(m, step.BatchNorm) for m in plain.model.modules())


def test_peak_memory():
    def work():
        a = torch.zeros(1000)
        b = torch.zeros(2000)
        del a
        return b, torch.zeros(500)

    assert compare.peak_memory(work, CPU) == 4 * 3000
    kept = [torch.zeros(10**6)]

    def free_what_was_there():
        kept.clear()
        return torch.zeros(1000)

    assert compare.peak_memory(free_what_was_there, CPU) == 4 * 1000


def test_peak_memory_of_a_step():
    """A million weights: they, momentum and gradient; the plain optimizer's sums with weight decay and momentum."""
    def objective(model, images, labels, weight=None):
        z = model(images)
        if weight is None:
            return z.sum(), z.sum(), []
        return losses.Terms(z.sum(), z.sum(), z.sum()), z.unsqueeze(1)

    net, batch = torch.nn.Linear(1000, 1000, bias=False), (torch.zeros(1, 1000), torch.zeros(1, dtype=torch.int64))
    for contender, copies in ((step.Plain(copy.deepcopy(net), objective, CPU, "off", 0.0), 5),
                              (step.Ours(net, objective, CPU, "off"), 3)):
        contender.step(*batch)
        assert step.peak(contender, batch) / 4e6 == pytest.approx(copies, abs=0.02)


def test_in_turns_lets_each_contender_begin():
    calls = []
    seconds = compare.in_turns({name: lambda name=name: calls.append(name) for name in "abc"}, 4, CPU)
    assert "".join(calls) == "abc" "bca" "cab" "abc"
    assert all(len(times) == 4 and min(times) > 0 for times in seconds.values())


def test_ratio():
    assert compare.ratio([2, 9, 4], [1, 3, 4]) == "2.000 (1.000 .. 3.000)"


def test_disagreement_ends_a_benchmark(monkeypatch):
    def wrong(*inputs):
        true, group, rows = step.plain_okddip(*inputs)
        return true, 1.01 * group, rows

    monkeypatch.setitem(step.METHODS, "OKDDip", step.METHODS["OKDDip"]._replace(plain=wrong))
    with pytest.raises(SystemExit, match="group loss of the first step, ours"):
        step.main(["--model", "resnet8", "--batch_size", "8", "--device", "cpu"])


def test_plain_loader_gives_what_ours_gives():
    data = compare.random_data(40, 0, seed=0)
    plain = next(iter(loader.pil_pipeline(data, 16, 0, CPU)))
    ours = next(iter(loader.Cached(data.train, data, 16, CPU, augment=True)))
    for a, b in zip(plain, ours, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert plain[0].mean().item() == pytest.approx(ours[0].mean().item(), abs=0.1)
    assert plain[0].std().item() == pytest.approx(ours[0].std().item(), abs=0.1)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux says how much memory a process has")
def test_private_memory():
    before = loader.private_memory(os.getpid())
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # malloc may hand out memory that the process already has
    with mmap.mmap(-1, 2**26, flags=private) as kept:
        kept[::mmap.PAGESIZE] = b"x" * (len(kept) // mmap.PAGESIZE)
        after = loader.private_memory(os.getpid())
    assert after - before == pytest.approx(2**26, rel=0.1)


def test_plain_evaluation_has_every_figure():
    args = evaluate.parse_args(["--model", "resnet8", "--batch_size", "4"])
    model, rows = evaluate.build(args, CPU), ["stu0", "stu1", "stu2", "stu_", ""]
    batches = [(torch.randn(4, 3, 32, 32), torch.arange(4))]
    found = evaluate.plain(model, batches, rows, torch.autocast("cpu", enabled=False))
    assert found.keys() == {"dist"} | {f"{row}test_{name}" for row in rows for name in ("accTop1", "accTop5", "loss")}


TINY = {
    "step.py": ["--model", "resnet8", "--batch_size", 8, "--pairs", 2],
    "loader.py": ["--images", 48, "--plain_images", 24, "--batch_size", 8, "--repeats", 2, "--workers", 1],
    "evaluate.py": ["--model", "resnet8", "--images", 24, "--plain_images", 8, "--batch_size", 8, "--repeats", 2],
}
ROWS = {
    "step.py": ["plain", "ours"],
    "loader.py": ["plain (PIL)", "cached", "streamed"],
    "evaluate.py": ["forward passes only", "engine.evaluate", "plain"],
}


@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_prints_its_table(script, name):
    done = script(f"benchmarks/{name}", *TINY[name], "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"torch {torch.__version__}, cpu")
    for row in ROWS[name]:  # its median, its ratio to the reference, its memory
        assert re.search(rf"^{re.escape(row)} +[\d.,]+ +(1|[\d.]+ \([\d.]+ \.\. [\d.]+\)) +[\d.]+", done.stdout, re.M)
    assert len({line.rfind("MiB") for line in done.stdout.splitlines() if "MiB" in line}) == 1
    if name == "step.py":
        assert re.search(r"forward [\d.]+ ms, backward [\d.]+ ms, optimizer [\d.]+ ms, metrics [\d.]+ ms", done.stdout)


def test_operations_of_a_network():
    """resnet8 by hand: two operations for each weight of a convolution at each of its output's places."""
    convolutions = [(3, 16, 3, 32), (16, 16, 3, 32), (16, 16, 3, 32), (16, 32, 3, 16), (32, 32, 3, 16), (16, 32, 1, 16),
                    (32, 64, 3, 8), (64, 64, 3, 8), (32, 64, 1, 8)]  # in, out, kernel, output's height and width
    by_hand = sum(2 * i * o * k * k * size**2 for i, o, k, size in convolutions) + 2 * 64 * 10
    assert cost.forward("resnet8", 10, 32) == by_hand
    line = "python train.py --model resnet8 --dataset CIFAR10 --num_epochs 2 --seed {}"
    backward = 2 * by_hand - 2 * 3 * 16 * 9 * 32**2  # of weights and of inputs, but not of the images
    assert cost.operations(line.format(0)) == 2 * (50_000 * (by_hand + backward) + 10_000 * by_hand)
    assert cost.operations(line.format(1)) == cost.operations(line.format(0))


def test_costs_are_listed(script):
    done = script("benchmarks/cost.py", "table5", "table5", "--tflops", "4")
    assert done.returncode == 0, done.stderr
    _, _, five, again = [line.split("|")[1:-1] for line in done.stdout.splitlines()]
    assert [cell.strip() for cell in five[:3]] == ["table5.sh", "18", "18"] and float(five[3]) > 0
    assert [cell.strip() for cell in again] == ["table5.sh", "18", "0", "0.0", "0"]
    assert float(five[4]) == pytest.approx(float(five[3]) * 1e18 / 4e12 / 3600, rel=0.3)
