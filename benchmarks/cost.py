"""What the paper's tables cost: operations of every run behind them, counted, and hours, estimated from these.

    python benchmarks/cost.py --tflops 2

Counted: convolutions and matrix products of a training step's forward and backward pass (a multiplication and an
addition are two operations) and of an evaluation's forward pass, without a teacher's evaluation, on the meta device,
which computes nothing. Assumed: the sustained rate --tflops, which these narrow networks do not let a GPU exceed by
much, whatever its data sheet says. A run that a script shares with one above it is not counted again.
"""

import argparse
import importlib
import os
import shlex
import subprocess
import sys
from argparse import Namespace
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import models  # noqa: E402
import train  # noqa: E402
import utils  # noqa: E402

SCRIPTS = ("table1", "table2", "table3", "table4", "table5", "table6", "figure3", "figure4")
# number of training images, test images, classes, and their height and width
DATA = {"CIFAR10": (50_000, 10_000, 10, 32), "CIFAR100": (50_000, 10_000, 100, 32),
        "imagenet": (1_281_167, 50_000, 1000, 224)}


def commands(script: str) -> list[str]:
    """The command lines of a script."""
    done = subprocess.run(["sh", ROOT / "scripts" / f"{script}.sh"], check=True, capture_output=True, text=True,
                          env={"PATH": os.environ["PATH"], "DRY_RUN": "1"})
    return done.stdout.splitlines()


def parse(command: str) -> tuple[str, Namespace]:
    """-> the script's module, its flags."""
    name, *flags = shlex.split(command)[1:]
    module = importlib.import_module(name.removesuffix(".py"))
    return module.__name__, (utils.parse(utils.Parser(""), flags) if module is train else module.parse_args(flags))


def operations(command: str) -> float:
    """Of the whole run."""
    module, args = parse(command)
    images, test_images, classes, size = DATA[args.dataset]
    build = (module, *((n, v) for n, v in sorted(vars(args).items()) if n in BUILD))
    step, evaluation = per_image(build, classes, size)
    teacher = getattr(args, "T_model", None)
    taught = forward(teacher, classes, size) if teacher else 0
    return args.num_epochs * (images * (step + taught) + test_images * evaluation)


# the flags that a model is made of
BUILD = {"model", "num_branches", "MulStu", "aggregation", "no_leader", "ind", "avg", "bpscale", "dropout", "efficient"}


@cache
def per_image(build: tuple, classes: int, size: int) -> tuple[float, float]:
    """Operations of a training step and of an evaluation, for each image."""
    module, *flags = build
    with torch.device("meta"):
        model, _, predict = importlib.import_module(module).build(Namespace(**dict(flags)), classes)
        images = torch.empty(2, 3, size, size)
    with FlopCounterMode(display=False) as step:
        outputs = model(images)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum(output.sum() for output in outputs if output is not None).backward()
    with FlopCounterMode(display=False) as evaluation, torch.no_grad():
        predict(model.eval(), images)
    return step.get_total_flops() / 2, evaluation.get_total_flops() / 2


@cache
def forward(model: str, classes: int, size: int) -> float:
    """Operations of one network's forward pass, for each image."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        models.create_model(model, classes).eval()(torch.empty(2, 3, size, size))
    return counter.get_total_flops() / 2


def known(script: str) -> str:
    """An argparse type."""
    if script not in SCRIPTS:
        raise argparse.ArgumentTypeError(f"unknown script {script!r}")
    return script


def main() -> None:
    """Print the table."""
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("scripts", nargs="*", default=SCRIPTS, metavar="SCRIPT", type=known,
                   help=f"{', '.join(SCRIPTS)} (default: all)")
    p.add_argument("--tflops", type=utils.number(float, 0, open_end=True), default=2.0,
                   help="10^12 operations that a GPU sustains in a second")
    args = p.parse_args()
    print(f"| script | runs | of them new | 10^18 operations | GPU hours at {args.tflops:g} * 10^12 / s |\n"
          "| --- | ---: | ---: | ---: | ---: |")
    seen: set[str] = set()
    for script in args.scripts:
        lines = commands(script)
        new = [line for line in lines if line not in seen]
        seen.update(new)
        total = sum(operations(line) for line in new)
        hours = total / args.tflops / 1e12 / 3600
        print(f"| {script}.sh | {len(lines)} | {len(new)} | {total / 1e18:.1f} | {hours:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
