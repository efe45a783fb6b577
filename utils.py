"""The command line: parser, flags that scripts share, errors as one line. Needs no PyTorch, so --help is quick."""

import argparse
import errno
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from runtime.errors import Complete, UserError, first_words, one_line
from runtime.rank import is_main, rank, world_size, wrong_variable
from training.folder import finished_run, run_path


def command(main: Callable[[], None]) -> None:
    """Run a script's main. A UserError, or a file that cannot be read or written, ends it with one line and exit 2."""
    open_closed_streams()
    try:
        if sentence := wrong_variable():
            raise UserError(sentence)
        main()
    except Complete as complete:
        if is_main():
            print(complete)
    except UserError as error:
        fail(error)
    except OSError as error:
        fail("a file or folder has a name too long for this file system: choose shorter ones (--version, --save_dir, "
             "--data_dir)" if error.errno == errno.ENAMETOOLONG else error)
    except RuntimeError as error:
        if any(sign in str(error) for sign in ("out of memory", "not enough memory", "can't allocate memory")):
            fail(f"there is not enough memory ({first_words(error)}): try a smaller --batch_size")
        if world_size() == 1:
            raise
        from runtime.processes import another_process_ended

        if not another_process_ended(error):
            raise
        reason = str(error).partition("\n")[0][:120]
        fail(f"another process of this run has ended: --resume auto goes on from the last checkpoint ({reason})")
    except KeyboardInterrupt:  # before the training; a training saves first
        sys.exit(128 + signal.SIGINT)
    finally:
        if world_size() > 1:
            from runtime.processes import leave

            leave()


def open_closed_streams() -> None:
    """Open those of files 0 to 2 that the shell has closed (2>&-): a checkpoint that became file 2 would get messages.

    sys.stdout stays None if it was closed, for ``write_result``.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(opened)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")


def fail(error: Exception | str) -> NoReturn:
    """Print one line, unless another process prints it, and exit with code 2."""
    if not (isinstance(error, UserError) and error.already_reported):
        who = f"process {rank()}: " if rank() else ""
        print(one_line(f"error: {who}{error}"), file=sys.stderr)
    tell_torchrun(one_line(f"error: {error}"))
    sys.exit(2)


def tell_torchrun(line: str) -> None:
    """Let torchrun repeat the line at the end of its own, long message. The format is that of its ``record``."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        about = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(path).write_text(json.dumps({"message": about}))


def write_result(text: str) -> None:
    """Write what a script is asked for to standard output. If nobody reads it (>&-, | head), end with exit code 1."""
    if sys.stdout is None:
        sys.exit(1)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again when it exits
        sys.exit(1)


def before_pytorch(parse_args: Callable[[None], argparse.Namespace]) -> None:
    """End the program for --help, for wrong flags, and if the run to resume is finished. This needs no PyTorch.

    A training script calls it between its flags and its other imports, which take seconds.
    """
    args = parse_args(None)
    with suppress(OSError):  # a path that is too long: main says so
        if folder := finished_run(args, Path(sys.argv[0]).stem):
            if is_main():
                print(Complete(folder, args.num_epochs))
            sys.exit()


# --- parser -----------------------------------------------------------------------------------------------------------


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps line breaks in formulas, and shows defaults other than None and False."""

    def _get_help_string(self, action: argparse.Action) -> str:
        nothing = action.default is None or action.default is False
        return action.help if nothing else super()._get_help_string(action)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kind = getattr(action.type, "__name__", "")
        return {"int": "N", "float": "X"}.get(kind, "NAME")


class Parser(argparse.ArgumentParser):
    """argparse, with a one-line error and a readable --help."""

    def __init__(self, description: str, operands: str = ""):
        """description: the script's docstring; --help omits its measured results. operands: positional arguments."""
        super().__init__(description=(description or "").partition("\nMeasured")[0].strip(),  # -OO: None
                         formatter_class=Help, usage=f"%(prog)s {operands} [--flag VALUE ...]".replace("  ", " "),
                         allow_abbrev=False)  # other code looks for whole flags in a command line

    def error(self, message: str):
        line = one_line(f"error: {message} (see {self.prog} --help)")
        tell_torchrun(line)
        self.exit(2, line + "\n" if is_main() else None)


def number(kind: type, low: float, open_end: bool = False, high: float | None = None) -> Callable[[str], float]:
    """An argparse type: a finite number of ``kind``, from ``low`` (open_end: greater) to ``high`` (int: 2**31 - 1)."""
    high = (2**31 - 1 if kind is int else math.inf) if high is None else high
    limit = high if kind is int else f"{high:g}"

    def parse(text: str):
        value = kind(text)
        if not math.isfinite(value) or not (low < value if open_end else low <= value):
            raise argparse.ArgumentTypeError(f"must be {'more than' if open_end else 'at least'} {low}, not {text}")
        if value > high:
            raise argparse.ArgumentTypeError(f"must be at most {limit}, not {text}")
        return value

    parse.__name__ = kind.__name__  # argparse says "invalid int value"
    return parse


def gpu_number(text: str) -> int:
    """An argparse type: the number of one GPU."""
    if "," in text:  # the original takes a list
        several = f"torchrun --standalone --nproc_per_node={len(text.split(','))} train_GL.py"
        raise argparse.ArgumentTypeError(f"one number, not {text}: a training uses several GPUs if torchrun starts it, "
                                         f"as in {several}, without --gpu_id")
    return number(int, 0)(text)


gpu_number.__name__ = "int"  # argparse says "invalid int value"

# --- flags of every training script -----------------------------------------------------------------------------------


# For --help. The tables models.NETWORKS and data_loader.DATASETS decide, and they need PyTorch: a name is looked up
# after parsing, by ``Run`` and by ``dataloader``.
NETWORKS = ("resnet8, resnet14, resnet20, resnet32, resnet44, resnet56, resnet110, wide_resnet20_8, vgg16, vgg19, "
            "densenetd40k12, densenetd100k12, resnet18, resnet34, resnet50")
DATASETS = "CIFAR10, CIFAR100, DIGITS, folder, imagenet"
DECODERS = ("pil", "fast")


def recipe_flags(p: Parser) -> None:
    """Network, data and training recipe. Names and defaults are those of the authors' code."""
    g = p.add_argument_group("recipe")
    g.add_argument("--model", default="resnet32", metavar="NAME",
                   help=f"network: {NETWORKS}; or torchvision:NAME, timm:NAME, or FILE.py:NAME, your own function or "
                        "class (docs/own_project.md)")
    g.add_argument("--dataset", default="CIFAR10", metavar="NAME",
                   help=f"{DATASETS} (folder and imagenet: <data_dir>/train/<class>/*, and test/ or val/ "
                        "next to it; of both, val/ chooses the best epoch)")
    g.add_argument("--image_size", type=number(int, 8, high=2048), metavar="S",
                   help="height and width of the images; above 64 they are cropped and streamed as ImageNet's "
                        "(default: imagenet 224, others 32; folder with torchvision: and timm: the network's own)")
    g.add_argument("--train_size", default=0, type=number(int, 0), metavar="N",
                   help="train on N training images, stratified, the same for every --seed (0: all not held out)")
    g.add_argument("--val_size", default=0, type=number(int, 0), metavar="N",
                   help="hold out N training images, stratified, to choose the best epoch (0: test images)")
    g.add_argument("--num_epochs", default=300, type=number(int, 1), help="length of the training")
    g.add_argument("--batch_size", default=128, type=number(int, 1), help="images per step")
    g.add_argument("--optimizer", default="sgd", choices=("sgd", "adamw"), help="sgd has Nesterov momentum 0.9")
    g.add_argument("--lr", type=number(float, 0, open_end=True),
                   help="initial learning rate (default: 0.1, with adamw 0.001)")
    g.add_argument("--cosine", action="store_true",
                   help="the learning rate falls to 0 as half a cosine, instead of by --schedule")
    g.add_argument("--warmup", default=0, type=number(int, 0), metavar="N",
                   help="epochs in which the learning rate rises at the beginning")
    g.add_argument("--label_smoothing", default=0.0, type=number(float, 0, high=1), metavar="X",
                   help="part of a label's probability that is spread over all classes")
    g.add_argument("--schedule", type=number(int, 1), nargs="+", metavar="EPOCH",
                   help="epochs after which the learning rate is divided by 10 "
                        "(default: half and three quarters of --num_epochs)")
    g.add_argument("--wd", type=number(float, 0),
                   help="weight decay, on every parameter (default: 0.0005, with adamw 0.05)")
    g.add_argument("--dropout", default=0.0, type=number(float, 0), help="dropout of VGG's classifier")
    g.add_argument("--efficient", action="store_true", help="DenseNet: recompute activations to save memory")
    g.add_argument("--seed", default=0, type=number(int, 0, high=2**63 - 1),
                   help="fixes weights, data order and augmentation")


def other_flags(p: Parser) -> None:
    """Networks that are not this project's; speed; several GPUs."""
    g = p.add_argument_group("networks from elsewhere (docs/own_project.md)")
    g.add_argument("--branch_at", metavar="MODULE", help="the submodule where the branches begin; what comes before it "
                                                         "is their trunk (whole networks need none)")
    g.add_argument("--classifier", metavar="MODULE", help="the submodule whose input are the features (default: the "
                                                          "last nn.Linear)")
    g.add_argument("--pretrained", action="store_true", help="start from the weights of torchvision or timm, and use "
                                                             "their mean and std")
    g.add_argument("--init", metavar="FILE", help="start from the weights in a .pth or .safetensors file")
    g = p.add_argument_group("speed (each flag changes rounding and is off by default)")
    g.add_argument("--amp", default="off", choices=("off", "bf16", "fp16"), help="networks in half precision")
    g.add_argument("--compile", action="store_true", help="torch.compile the training step; on a GPU, CUDA graphs")
    g.add_argument("--decoder", default="pil", choices=DECODERS,
                   help="of imagenet's JPEG files; fast: simplejpeg instead of Pillow")
    g.add_argument("--tf32", action="store_true", help="TF32 in convolutions and matrix products, on GPUs that have it")
    g = p.add_argument_group("several GPUs (torchrun --standalone --nproc_per_node=N train....py)")
    g.add_argument("--sync_bn", action="store_true", help="BatchNorm over the images of all processes")


def run_flags(p: Parser) -> None:
    """Where a run's files are, and what it runs on."""
    g = p.add_argument_group("run")
    g.add_argument("--data_dir", default="./Data", help="where the data is, or is downloaded to")
    g.add_argument("--save_dir", default=".", help="runs are saved in <save_dir>/<dataset>/<method>/<model>")
    g.add_argument("--version", default="V0",
                   help="name of the run, if there are several of a method and network; it is appended to the folder "
                        "(V0 appends nothing)")
    g.add_argument("--resume", metavar="RUN",
                   help="run folder, or a checkpoint in it: continue where it stopped, with the same flags; auto: "
                        "continue this run if it was begun, else start it")
    g.add_argument("--save_every", default=1, type=number(int, 1), metavar="N",
                   help="save last.pth every N epochs; the best and the last epoch are always saved")
    g.add_argument("--save_steps", default=0, type=number(int, 0), metavar="N",
                   help="also save last.pth every N steps, for long epochs (0: never)")
    g.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    g.add_argument("--cache", default="on", choices=("on", "off"),
                   help="on: all images stay on the device; off (imagenet: always): they are read one by one")
    g.add_argument("--num_workers", default=8, type=number(int, 0),
                   help="threads that decode image files; with --cache off, processes")
    g.add_argument("--gpu_id", default=0, type=gpu_number, help="which GPU, if there are several; under torchrun "
                                                                    "each process has its own GPU, from 0")
    g.add_argument("--device", help="cuda, cuda:1, cpu, ... (default: the GPU if there is one, else the CPU)")
    g.add_argument("--log_every", default=100, type=number(int, 1), help="update the progress every N steps")


def distillation_flags(p: Parser, title: str, temperature: float = 3.0) -> argparse._ArgumentGroup:
    """--loss and --temperature. Returns the argument group, so that the method can add its own flags."""
    g = p.add_argument_group(title)
    g.add_argument("--loss", default="KL", choices=("KL", "CE"), help="divergence between target and student")
    g.add_argument("--temperature", default=temperature, type=number(float, 0, open_end=True, high=1e6),
                   help="T: a larger temperature makes probabilities softer")
    return g


def ramp_up_flags(g: argparse._ArgumentGroup) -> None:
    """alpha, and w(e) (``losses.ramp_up``)."""
    g.add_argument("--alpha", default=1.0, type=number(float, 0), help="weight of the group loss")
    g.add_argument("--start_consistency", default=0.0, type=number(float, 0),
                   help="fraction of the epochs before the ramp-up w(e) begins")
    g.add_argument("--length", default=80.0, type=number(float, 0), help="epochs of the ramp-up; 0: none")


def group_flags(g: argparse._ArgumentGroup, students: str, based_on: str = "", mixed: bool = False) -> None:
    """The number of students, and whether they share a trunk. based_on: "branches" or "networks", if it is always so.

    mixed: the students may be different networks (--models), because the method's targets are logits.
    """
    g.add_argument("--num_branches", default=4, type=number(int, 2, high=1000), help=f"m, the number of {students}")
    if mixed:
        g.add_argument("--models", nargs="+", metavar="NAME",
                       help="a network for each student, instead of --model and --num_branches"
                            + ("" if based_on else " (with --MulStu and --ind or --avg)"))
    if not based_on:
        g.add_argument("--MulStu", action="store_true", help="network-based: whole networks instead of branches")
    g.add_argument("--choose_E", action="store_true", help="choose the best epoch by the ensemble (Table 4)")


def teacher_flags(g: argparse._ArgumentGroup, default: str | None, help: str) -> None:
    """Which pre-trained network, and where it is."""
    g.add_argument("--T_model", default=default, metavar="NAME", help=help)
    g.add_argument("--T_model_path", metavar="RUN", help="the teacher: a run's folder (of a group, the network that is "
                                                         "deployed), a checkpoint, or an exported .pth or "
                                                         ".safetensors file (default: <save_dir>/<dataset>/<T_model>)")


def parse(p: Parser, argv: list[str] | None) -> argparse.Namespace:
    """Add the flags of every script to the method's own, parse, and check what argparse cannot."""
    recipe_flags(p)
    other_flags(p)
    run_flags(p)
    args = p.parse_args(argv)
    adamw = args.optimizer == "adamw"
    args.lr = args.lr or (1e-3 if adamw else 0.1)
    args.wd = (0.05 if adamw else 5e-4) if args.wd is None else args.wd
    if args.cosine and args.schedule:
        p.error("argument --schedule: the learning rate falls by steps or as a --cosine, not both")
    falls = args.num_epochs if args.cosine else (args.schedule or [-(-args.num_epochs // 2)])[0]
    if args.warmup >= falls:
        p.error(f"argument --warmup: must end before the learning rate falls, after epoch {falls}, not {args.warmup}")
    if args.pretrained and args.init:
        p.error("argument --init: the weights start from a file or from --pretrained, not both")
    if args.schedule and any(a >= b for a, b in zip(args.schedule, args.schedule[1:], strict=False)):
        p.error(f"argument --schedule: epochs must increase, not {' '.join(map(str, args.schedule))}")
    if args.resume and args.overwrite:
        p.error("argument --overwrite: a run is continued (--resume) or replaced, not both")
    if Path(args.version).name != args.version:
        p.error(f"argument --version: a name, not a path: {args.version!r}")
    if not args.version.isprintable():  # scripts/runs.sh has one line for each run
        p.error(f"argument --version: a name without line breaks and other control characters, not {args.version!r}")
    if args.dropout >= 1:
        p.error(f"argument --dropout: must be less than 1, not {args.dropout:g}")
    if getattr(args, "models", None):
        several_networks(p, args, sys.argv[1:] if argv is None else argv)
    return args


def several_networks(p: Parser, args: argparse.Namespace, words: list[str]) -> None:
    """--models: set --model, which names the run, and --num_branches to what it says. words: the command line."""
    if not getattr(args, "MulStu", True):
        p.error("argument --models: branches share the trunk of one network, use --model, or add --MulStu to --ind or "
                "--avg")
    if len(set(args.models)) < 2:
        p.error("argument --models: names different networks, one for each student; for equal ones use --model and "
                "--num_branches")
    for flag in {"--model", "--num_branches"} & {word.partition("=")[0] for word in words}:
        p.error(f"argument --models: names the {len(args.models)} students already, leave out {flag}")
    args.model, args.num_branches = "+".join(args.models), len(args.models)


# --- from flags to arguments ------------------------------------------------------------------------------------------


def network_options(args: argparse.Namespace) -> dict:
    """The flags that a network is built with."""
    return {"dropout": args.dropout, "efficient": args.efficient, "classifier": args.classifier,
            "branch_at": args.branch_at, "pretrained": args.pretrained, "init": args.init,
            "image_size": args.image_size or 32}


def teacher_path(args: argparse.Namespace) -> Path | str:
    """--T_model_path, or where train.py saves a run of --T_model."""
    return args.T_model_path or run_path(args, model=args.T_model)
