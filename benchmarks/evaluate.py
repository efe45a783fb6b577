"""The time of an evaluation: engine.evaluate against the forward passes alone, and against a plain evaluation.

    python benchmarks/evaluate.py

An OKDDip group: top-1/5 and cross-entropy of peers, leader and ensemble, diversity, mean attention. Plain is in NCHW,
reads every figure of every batch at once, and computes the diversity image by image; both must find the same figures.
The forward passes have their batches at hand: what lies between them and engine.evaluate is loading and measuring.

Measured (two CPU cores, torch 2.14.1): forward passes 18.98 s, engine.evaluate 18.95 s (ratio 1.003), plain 22.03 s.
"""

import copy
import os
import statistics
import sys
from collections import defaultdict
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler prints nothing; read when torch is imported

import engine
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models
import utils
from benchmarks import compare
from data_loader import Cached, Split
from losses import full_precision


def predict(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """train_GL.py's: each peer, the leader, the peers' ensemble; attention."""
    peers, attention, leader = model.attend(images)
    return torch.cat([peers, leader.unsqueeze(1), peers.mean(1, keepdim=True)], 1), {"attention": attention}


@torch.inference_mode()
def forward_only(model: nn.Module, batches: list[tuple[Tensor, Tensor]], autocast: torch.autocast) -> None:
    model.eval()
    for images, _ in batches:
        with autocast:
            model.attend(images)


@torch.inference_mode()
def plain(model: nn.Module, loader: Cached, rows: list[str], autocast: torch.autocast) -> dict[str, float]:
    """-> the same figures under the same names."""
    model.eval()
    sums, count = defaultdict(float), 0
    for images, labels in loader:
        images = images.contiguous()
        with autocast:
            peers, _, leader = model.attend(images)
        peers = [full_precision(z) for z in peers.unbind(1)]
        for row, z in zip(rows, [*peers, full_precision(leader), sum(peers) / len(peers)], strict=True):
            right = z.topk(5, 1).indices == labels.unsqueeze(1)  # [B, 5]
            sums[f"{row}test_accTop1"] += 100 * right[:, 0].sum().item()
            sums[f"{row}test_accTop5"] += 100 * right.sum().item()
            sums[f"{row}test_loss"] += F.cross_entropy(z, labels, reduction="sum").item()
        p = torch.stack([F.softmax(z, 1) for z in peers], 1)  # [B, m-1, C]
        for image in p:
            pairs = [torch.dist(a, b).item() for a, b in combinations(image, 2)]
            sums["dist"] += sum(pairs) / len(pairs)
        count += len(labels)
    return {name: value / count for name, value in sums.items()}


def build(args, device: torch.device) -> nn.Module:
    model = models.OKDDip(args.model, num_classes=10, num_branches=args.num_branches).to(device)
    with torch.no_grad():  # in training mode: at the statistics they begin with, activations double in every block
        for _ in range(10):
            model(torch.randn(args.batch_size, 3, 32, 32, device=device))
    return model


def parse_args(argv: list[str] | None):
    p = compare.parser(__doc__)
    p.add_argument("--model", default="resnet32", choices=models.NETWORKS, metavar="NAME", help="network")
    p.add_argument("--num_branches", default=4, type=utils.number(int, 3), help="m, students, the leader among them")
    p.add_argument("--images", default=10000, type=utils.number(int, 1), help="to evaluate")
    p.add_argument("--plain_images", default=1280, type=utils.number(int, 1), help="those of them that plain evaluates")
    p.add_argument("--repeats", default=3, type=utils.number(int, 1), help="timed evaluations of each kind")
    compare.precision_flags(p)
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device = compare.start(args)
    model = build(args, device)
    plain_model = copy.deepcopy(model)
    model.to(memory_format=torch.channels_last)
    autocast = torch.autocast(device.type, dtype=engine.AMP.get(args.amp), enabled=args.amp in engine.AMP)
    rows = [*(f"stu{a}" for a in range(args.num_branches - 1)), "stu_", ""]
    method = engine.Method(rows, None, predict, best="stu_test_accTop1")

    data = compare.random_data(0, args.images, args.seed)
    loader = Cached(data.test, data, args.batch_size, device)
    part = Cached(Split(*(a[: args.plain_images] for a in data.test)), data, args.batch_size, device)
    batches = list(loader)

    ours, tolerance = engine.evaluate(method, model, part, "test", autocast), compare.tolerance(args)
    for name, value in plain(plain_model, part, rows, autocast).items():
        # near ties of two scores are rounded either way: top-1 and top-5 may differ by a little, in % of the images
        compare.must_agree(f"{name}:", ours[name], value, tolerance, 100 * tolerance if "accTop" in name else 0)

    contenders = {
        "forward passes only": lambda: forward_only(model, batches, autocast),
        "engine.evaluate": lambda: engine.evaluate(method, model, loader, "test", autocast),
        "plain": lambda: plain(plain_model, part, rows, autocast),
    }
    compare.in_turns(contenders, 1, device)
    seconds = compare.in_turns(contenders, args.repeats, device)
    scale = args.images / part.num_images
    seconds["plain"] = [s * scale for s in seconds["plain"]]
    peaks = [compare.peak_memory(run, device) for run in contenders.values()]

    print(f"OKDDip, {args.model}, batches of {args.batch_size}, amp {args.amp}: medians of {args.repeats} evaluations "
          f"of {args.images:,} images; plain: of {part.num_images:,}, its time multiplied by {scale:.4g}")
    print(compare.table(("", "s", "times the forward passes", "peak MiB besides weights"), *(
        (name, f"{statistics.median(seconds[name]):.3f}",
         compare.ratio(seconds[name], seconds["forward passes only"]), compare.mebibytes(peak))
        for name, peak in zip(contenders, peaks, strict=True))))
    print(f"plain / engine.evaluate: {compare.ratio(seconds['plain'], seconds['engine.evaluate'])}")


if __name__ == "__main__":
    utils.command(main)
