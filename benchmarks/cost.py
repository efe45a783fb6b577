"""The cost of the paper's tables: the operations of all their runs, counted, and the GPU hours.

    python benchmarks/cost.py
    MODELS=resnet32 python benchmarks/cost.py table2     # variables as in scripts/runs.sh

Counted are convolutions and matrix products: forward and backward passes of training steps, the teacher's forward
passes in them, and forward passes of evaluations. A multiplication and an addition are two operations. The counting
uses the meta device, which computes nothing. A run that an earlier script has made is not counted again.

The GPU hours suppose that a GPU sustains --tflops; benchmarks/step.py measures that.
"""

import argparse
import importlib
import os
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import methods  # noqa: E402
import models  # noqa: E402
import utils  # noqa: E402
from runtime.errors import UserError  # noqa: E402

SCRIPTS = ("table1", "table2", "table3", "table4", "table5", "table6", "figure3", "figure4", "later")
# data set -> training images, test images, classes, height and width
DATA = {"CIFAR10": (50_000, 10_000, 10, 32), "CIFAR100": (50_000, 10_000, 100, 32),
        "imagenet": (1_281_167, 50_000, 1000, 224)}


def new_runs(scripts: Iterable[str]) -> Iterator[tuple[str, int, list[str]]]:
    """-> each script, the number of its runs, and the command lines that no script before it has.

    The variables of the environment apply. UserError if the script rejects them.
    """
    seen: set[str] = set()
    for script in scripts:
        done = subprocess.run(["sh", ROOT / "scripts" / f"{script}.sh"], capture_output=True, text=True,
                              env=os.environ | {"DRY_RUN": "1", "PYTHON": sys.executable})
        if done.returncode:
            raise UserError(done.stderr.strip().removeprefix("error: "))
        lines = done.stdout.splitlines()
        yield script, len(lines), [line for line in lines if line not in seen]
        seen.update(lines)


def parse(command: str) -> tuple[type, Namespace]:
    """-> the class of the method that a command line trains, and all its flags."""
    script, *flags = shlex.split(command)[1:]
    entries = [(len(entry.flags.split()), name) for name, entry in methods.METHODS.items()
               if f"{entry.module}.py" == script and set(entry.flags.split()) <= set(flags)]
    cls, _ = methods.find(max(entries)[1])  # the entry with the most flags
    return cls, importlib.import_module(cls.__module__).parse_args(flags)


def operations(command: str) -> float:
    """The operations of a whole run."""
    words = shlex.split(command)
    for flag in ("--seed", "--version", "--T_model_path"):
        if flag in words:
            del words[words.index(flag):words.index(flag) + 2]
    try:
        return operations_of(shlex.join(words))
    except ValueError as error:  # of models
        raise UserError(str(error)) from error


@cache
def operations_of(command: str) -> float:
    """The same, of a command without the flags that do not change it."""
    cls, args = parse(command)
    names = [*(getattr(args, "models", None) or [args.model]), getattr(args, "T_model", None) or ""]
    if elsewhere := [name for name in names if models.is_external(name)]:
        raise UserError(f"the operations of {elsewhere[0]} are not counted: choose networks of this project")
    if args.dataset not in DATA:
        raise UserError(f"the number of images of {args.dataset} is not known here: choose DATASETS from "
                        f"{', '.join(DATA)}")
    images, test_images, classes, size = DATA[args.dataset]
    images, size = args.train_size or images - args.val_size, args.image_size or size
    test_images += args.val_size
    step, evaluation = per_image(cls, args, classes, size)
    return args.num_epochs * (images * step + test_images * evaluation)


def per_image(cls: type, args: Namespace, classes: int, size: int) -> tuple[float, float]:
    """Operations of a training step and of an evaluation, divided by the number of images."""
    with torch.device("meta"):
        method = cls(args, classes)
        if getattr(args, "T_model", None):
            method.teacher = models.create_model(args.T_model, classes).eval().requires_grad_(False)
        images, labels = torch.empty(2, 3, size, size), torch.zeros(2, dtype=torch.int64)
        views = images if cls.views(args) == 1 else images.unsqueeze(1).expand(-1, cls.views(args), -1, -1, -1)
        with FlopCounterMode(display=False) as step:
            terms, _ = method.loss(method.model, views, labels, 1.0)
            terms.total.backward()
        method.model.eval()
        with FlopCounterMode(display=False) as evaluation, torch.no_grad():
            method.predict(images)
    return step.get_total_flops() / 2, evaluation.get_total_flops() / 2


def parse_args(argv: list[str] | None = None) -> Namespace:
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("scripts", nargs="*", metavar="SCRIPT", help=f"{', '.join(SCRIPTS)} (default: all)")
    p.add_argument("--tflops", type=utils.number(float, 0, open_end=True), default=2.0,
                   help="10^12 operations that a GPU sustains per second (default: %(default)g)")
    args = p.parse_args(argv)
    if unknown := [script for script in args.scripts if script not in SCRIPTS]:
        p.error(f"unknown script {unknown[0]!r}")
    return args


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    args = parse_args(argv)
    print(f"| script | runs | of them new | 10^18 operations | GPU hours at {args.tflops:g} * 10^12 / s |\n"
          "| --- | ---: | ---: | ---: | ---: |")
    for script, count, new in new_runs(args.scripts or SCRIPTS):
        total = sum(map(operations, new))
        print(f"| {script}.sh | {count} | {len(new)} | {total / 1e18:.1f} | {total / args.tflops / 3600e12:,.0f} |",
              flush=True)


if __name__ == "__main__":
    utils.command(main)
