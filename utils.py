"""Command line, seed, device and run folder: what every script needs before there is anything to train."""

import argparse
import math
import os
import platform
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
import torchvision

import parallel
from data_loader import DATASETS
from errors import Complete, UserError
from losses import DISTILLATION
from models import NETWORKS, registry

HERE = Path(__file__).resolve().parent
# what a run writes into its folder, TensorBoard's events besides
FILES = ("train.log", "last.pth", "best.pth", "metrics.jsonl", "test_best_metrics.json", "summary.json",
         "parameters.json")


def command(main: Callable[[], None]) -> None:
    """Run a script's main; a UserError, or a file that cannot be read or written, ends it with one line and exit 2."""
    try:
        main()
    except Complete as complete:
        if parallel.is_main():
            print(complete)
    except (UserError, OSError) as error:
        fail(error)
    except RuntimeError as error:
        if not parallel.lost_another(error):
            raise
        reason = str(error).partition("\n")[0][:120]
        fail(f"another process of this run has ended: --resume auto goes on from the last checkpoint ({reason})")
    except KeyboardInterrupt:  # before the training, which saves what it has
        sys.exit(128 + signal.SIGINT)
    finally:
        parallel.leave()


def fail(error: Exception | str) -> NoReturn:
    """One line, unless the first process tells it for all, and exit code 2."""
    if not (isinstance(error, UserError) and error.told):
        who = f"process {parallel.rank()}: " if parallel.rank() else ""
        print(f"error: {who}{error}", file=sys.stderr)
    sys.exit(2)


# --- command line -----------------------------------------------------------------------------------------------


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Formulas as they are written, and defaults where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str:
        nothing = action.default is None or action.default is False
        return action.help if nothing else super()._get_help_string(action)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kind = getattr(action.type, "__name__", "")
        return {"int": "N", "num_branches": "N", "float": "X"}.get(kind, "NAME")


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line, and --help is read by people."""

    def __init__(self, description: str, operands: str = ""):
        """description: the script's docstring, of which --help shows what is not about measured results; operands: what
        it takes besides flags."""
        super().__init__(description=description.partition("\nMeasured")[0].strip(), formatter_class=Help,
                         usage=f"%(prog)s {operands} [--flag VALUE ...]".replace("  ", " "))

    def error(self, message: str):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n" if parallel.is_main() else None)


def number(kind: type, low: float, open_end: bool = False, high: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a finite number of ``kind``, at least (open_end: more than) ``low`` and at most ``high``."""

    def parse(text: str):
        value = kind(text)
        if not math.isfinite(value) or not (low < value if open_end else low <= value):
            raise argparse.ArgumentTypeError(f"must be {'more than' if open_end else 'at least'} {low}, not {text}")
        if value > high:
            raise argparse.ArgumentTypeError(f"must be at most {high:g}, not {text}")
        return value

    parse.__name__ = kind.__name__  # argparse: "invalid int value"
    return parse


def recipe_flags(p: Parser) -> None:
    """What is trained on what, and how, in every script; original names and defaults."""
    g = p.add_argument_group("recipe")
    g.add_argument("--model", default="resnet32", choices=NETWORKS, metavar="NAME",
                   help=f"network: {', '.join(NETWORKS)}")
    g.add_argument("--dataset", default="CIFAR10", choices=DATASETS, metavar="NAME",
                   help=f"{', '.join(DATASETS)} (folder: <data_dir>/train/<class>/*, with test/ or val/ beside; "
                        "imagenet: train/<class>/* and val/<class>/*)")
    g.add_argument("--train_size", default=0, type=number(int, 0), metavar="N",
                   help="training images to train on, stratified, the same ones for every --seed (0: all)")
    g.add_argument("--val_size", default=0, type=number(int, 0), metavar="N",
                   help="training images to hold out, stratified, which choose the best epoch (0: the test images do)")
    g.add_argument("--num_epochs", default=300, type=number(int, 1), help="length of the training")
    g.add_argument("--batch_size", default=128, type=number(int, 1), help="images in a step")
    g.add_argument("--lr", default=0.1, type=number(float, 0, open_end=True), help="learning rate at the start")
    g.add_argument("--schedule", type=number(int, 1), nargs="+", metavar="EPOCH",
                   help="epochs after which the learning rate is divided by 10 "
                        "(default: half and three quarters of --num_epochs)")
    g.add_argument("--wd", default=5e-4, type=number(float, 0), help="weight decay, on every parameter")
    g.add_argument("--dropout", default=0.0, type=number(float, 0), help="dropout of VGG's classifier")
    g.add_argument("--efficient", action="store_true", help="DenseNet: recompute activations, to save memory")
    g.add_argument("--seed", default=0, type=number(int, 0, high=2**63 - 1),
                   help="fixes weights, data order and augmentation")
    g = p.add_argument_group("speed (each changes rounding, and is off by default)")
    g.add_argument("--amp", default="off", choices=("off", "bf16", "fp16"), help="networks in half precision")
    g.add_argument("--compile", action="store_true", help="torch.compile the training step; on a GPU, CUDA graphs")
    g.add_argument("--tf32", action="store_true", help="TF32 in convolutions and matrix products, on GPUs that have it")
    g = p.add_argument_group("several GPUs (torchrun --standalone --nproc_per_node=N train....py)")
    g.add_argument("--sync_bn", action="store_true", help="BatchNorm over the images of all processes")


def run_flags(p: Parser) -> None:
    """Where a run's files are, and what it runs on."""
    g = p.add_argument_group("run")
    g.add_argument("--data_dir", default="./Data", help="where the data is, or is downloaded to")
    g.add_argument("--save_dir", default=".", help="where <dataset>/<run> is made")
    g.add_argument("--version", default="V0", help="name of the run, for several with the same method and network")
    g.add_argument("--resume", metavar="RUN",
                   help="run folder, or a checkpoint in it: continue where it stopped, with the same flags; auto: "
                        "continue this run if it was begun, else start it")
    g.add_argument("--save_every", default=1, type=number(int, 1), metavar="N",
                   help="epochs between two last.pth; a best or last epoch is saved in any case")
    g.add_argument("--save_steps", default=0, type=number(int, 0), metavar="N",
                   help="steps between two last.pth within an epoch, for long ones (0: none)")
    g.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    g.add_argument("--cache", default="on", choices=("on", "off"),
                   help="on: all images live on the device; off, and for imagenet always: they are read one by one")
    g.add_argument("--num_workers", default=8, type=number(int, 0),
                   help="threads that decode image files; processes where they are read one by one")
    g.add_argument("--gpu_id", default=0, type=number(int, 0), help="which GPU, where there are several; torchrun's "
                                                                    "processes have one each, the first ones")
    g.add_argument("--device", help="cuda, cuda:1, cpu, ... (default: the GPU where there is one, else the CPU)")
    g.add_argument("--log_every", default=100, type=number(int, 1), help="steps between two updates of the progress")


def distillation_flags(p: Parser, title: str) -> argparse._ArgumentGroup:
    """--loss and --temperature, which every distillation has; the group takes the method's own flags."""
    g = p.add_argument_group(title)
    g.add_argument("--loss", default="KL", choices=DISTILLATION, help="divergence between target and student")
    g.add_argument("--temperature", default=3.0, type=number(float, 0, open_end=True, high=1e6), help="T, softens both")
    return g


def ramp_up_flags(g: argparse._ArgumentGroup) -> None:
    """alpha, and w(e) (``losses.ramp_up``)."""
    g.add_argument("--alpha", default=1.0, type=number(float, 0), help="weight of the group loss")
    g.add_argument("--start_consistency", default=0.0, type=number(float, 0),
                   help="share of the training after which the ramp-up w(e) begins")
    g.add_argument("--length", default=80.0, type=number(float, 0), help="epochs of the ramp-up; 0: none")


def num_branches(text: str) -> int:
    """An argparse type."""
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"a group needs at least 2 students, not {text}")
    return value


def group_flags(g: argparse._ArgumentGroup, students: str, network_based: bool = False) -> None:
    """The number of students, and what they are."""
    g.add_argument("--num_branches", default=4, type=num_branches, help=f"m, the number of {students}")
    if not network_based:
        g.add_argument("--MulStu", action="store_true", help="network-based: whole networks instead of branches")
    g.add_argument("--choose_E", action="store_true", help="choose the best epoch by the ensemble (Table 4)")


def teacher_flags(g: argparse._ArgumentGroup, default: str | None, help: str) -> None:
    """Which pre-trained network, and where it is."""
    g.add_argument("--T_model", default=default, choices=NETWORKS, metavar="NAME", help=help)
    g.add_argument("--T_model_path", metavar="RUN", help="the teacher's run folder or checkpoint file (default: "
                                                         "<save_dir>/<dataset>/<T_model>)")


def network_options(args: argparse.Namespace) -> dict:
    """The flags that a network is built with."""
    return {"dropout": args.dropout, "efficient": args.efficient}


def warn(message: str) -> None:
    """A line on standard error, of the first process."""
    if parallel.is_main():
        print(f"warning: {message}", file=sys.stderr)


def parse(p: Parser, argv: list[str] | None) -> argparse.Namespace:
    """Add the flags of every script to the method's own, parse, and check what argparse cannot."""
    recipe_flags(p)
    run_flags(p)
    args = p.parse_args(argv)
    if args.schedule and any(a >= b for a, b in zip(args.schedule, args.schedule[1:], strict=False)):
        p.error(f"argument --schedule: epochs must increase, not {' '.join(map(str, args.schedule))}")
    if args.resume and args.overwrite:
        p.error("argument --overwrite: a run is continued (--resume) or replaced, not both")
    if Path(args.version).name != args.version:
        p.error(f"argument --version: a name, not a path: {args.version!r}")
    if args.dropout >= 1:
        p.error(f"argument --dropout: must be less than 1, not {args.dropout:g}")
    if args.model.startswith("vgg") and args.dataset == "imagenet":
        p.error(f"argument --model: {args.model} is made for images of 32x32, not for imagenet")
    try:
        registry.find(args.model, **network_options(args))
    except ValueError as error:
        p.error(str(error))
    return args


# --- device and seed ----------------------------------------------------------------------------------------------


def pick_device(args: argparse.Namespace) -> torch.device:
    """--device where it is given, else GPU --gpu_id, else the CPU; under torchrun, each process has its own GPU."""
    name = args.device or (f"cuda:{args.gpu_id}" if torch.cuda.is_available() else "cpu")
    if parallel.world_size() > 1 and name.startswith("cuda"):
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise ValueError("this code runs on cpu and cuda")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"device {name!r} cannot be used ({reason}); --device cpu always can") from error
    if args.sync_bn and device.type == "cpu":
        raise UserError("--sync_bn needs GPUs: PyTorch has no synchronised BatchNorm for CPUs, leave it out")
    return device


def set_precision(tf32: bool) -> None:
    """float32 stays float32 unless --tf32 says otherwise, and cuDNN tries which of its algorithms is fastest."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True


def seed_everything(seed: int) -> None:
    """Python's, NumPy's and PyTorch's generators, on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


# --- run folder -----------------------------------------------------------------------------------------------------


def run_folder(args: argparse.Namespace, method: str = "") -> Path:
    """<save_dir>/<dataset>/[<method>/]<model>[_<version>], or the folder that is resumed. Makes nothing.

    UserError where a run is there already, naming the ways out.
    """
    if args.resume and args.resume != "auto":
        path = Path(args.resume)
        return path if path.is_dir() else path.parent
    name = args.model if args.version == "V0" else f"{args.model}_{args.version}"
    path = Path(args.save_dir, args.dataset, method, name)
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"{place} is a file where the run's folder belongs: take another --save_dir or --version")
    if any((path / file).exists() for file in FILES) and not (args.overwrite or args.resume):
        raise UserError(f"{path} holds a run already: continue it with --resume {path}, name this one with --version, "
                        "or replace it with --overwrite")
    if args.resume and (path / "best.pth").exists() and not (path / "last.pth").exists():
        raise UserError(f"{path} holds a best.pth and no last.pth to continue from: name this run with --version, or "
                        "replace what is there with --overwrite")
    return path


def git_revision() -> str:
    """The commit of this code, "+changes" where Python files differ from it; "unknown" outside its own git clone."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", HERE, *words], check=True, capture_output=True, text=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != HERE:
            return "unknown"
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", "*.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment(device: torch.device) -> dict[str, str | int]:
    """What a run was made with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "revision": git_revision(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
        "device": f"{device} ({name}, {torch.get_num_threads()} CPU threads)",
        "processes": parallel.world_size(),
    }
