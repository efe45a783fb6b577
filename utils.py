"""The command line: parser, flags that scripts share, one-line errors. It needs no PyTorch, so --help is quick."""

import argparse
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
from runtime.rank import is_main, rank, world_size
from training.folder import finished_run, run_path


def command(main: Callable[[], None]) -> None:
    """Run a script's main. UserError and OSError end it with one line and exit code 2."""
    try:
        main()
    except Complete as complete:
        if is_main():
            print(complete)
    except (UserError, OSError) as error:
        fail(error)
    except (RuntimeError, MemoryError) as error:
        signs = ("out of memory", "not enough memory", "can't allocate memory")
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in signs):
            fail(f"there is not enough memory ({first_words(error)}): try a smaller --batch_size or --cache off")
        if str(error).startswith("DataLoader worker") or "shared memory(shm)" in str(error):  # the system's doing
            fail(f"a process that reads images has ended ({first_words(error)}): try fewer --num_workers, or give them "
                 "more shared memory (docker run --ipc=host)")
        if world_size() == 1:
            raise
        from runtime.processes import another_process_ended

        if not another_process_ended(error):
            raise
        reason = str(error).partition("\n")[0][:120]
        fail(f"another process of this run has ended: --resume auto continues from the last checkpoint ({reason})")
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):  # PyTorch's BatchNorm
            raise
        fail("BatchNorm needs more than one image in each process, because a feature map is 1x1: use a larger "
             "--batch_size")
    except KeyboardInterrupt:  # before the training; a training saves first
        sys.exit(128 + signal.SIGINT)
    finally:
        if world_size() > 1:
            from runtime.processes import leave

            leave()


def fail(error: Exception | str) -> NoReturn:
    """Print one line, unless another process reports the error, and exit with code 2."""
    if not (isinstance(error, UserError) and error.already_reported):
        who = f"process {rank()}: " if rank() else ""
        print(one_line(f"error: {who}{error}"), file=sys.stderr)
    tell_torchrun(one_line(f"error: {error}"))
    sys.exit(2)


def tell_torchrun(line: str) -> None:
    """Let torchrun repeat the line at the end of its own long message. The format is that of its ``record``."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        about = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(path).write_text(json.dumps({"message": about}))


def write_result(text: str) -> None:
    """Write a script's result to standard output. If that is closed (| head), exit with code 1."""
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files and classes that it cannot encode
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it again at its exit
        sys.exit(1)


def before_pytorch(parse_args: Callable[[None], argparse.Namespace]) -> None:
    """Exit here for --help, for wrong flags, and if the run to resume is finished: none of them needs PyTorch.

    A training script calls it before its slow imports.
    """
    args = parse_args(None)
    with suppress(OSError):  # a path that is too long: main reports it
        if folder := finished_run(args, Path(sys.argv[0]).stem):
            if is_main():
                print(Complete(folder, args.num_epochs))
            sys.exit()


# --- parser -----------------------------------------------------------------------------------------------------------


class Help(argparse.RawDescriptionHelpFormatter):
    """Appends the default of each flag, unless it is None, False or 0."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return f"{action.help} (default: %(default)s)" if action.default else action.help

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kind = getattr(action.type, "__name__", "")
        return {"int": "N", "float": "X"}.get(kind, "NAME")

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        first, several, _ = super()._format_args(action, default_metavar).partition(" [")
        return first + (" ..." if several else "")  # argparse: EPOCH [EPOCH ...]


class Parser(argparse.ArgumentParser):
    """argparse, with a one-line error and a short --help. main: the first group, of the flags that everybody needs."""

    def __init__(self, description: str, operands: str = ""):
        """description: the script's docstring; --help shows its title and commands. operands: positional arguments."""
        super().__init__(description="\n\n".join((description or "").split("\n\n")[:2]),  # -OO: None
                         formatter_class=Help, usage=f"%(prog)s {operands} [--flag VALUE ...]".replace("  ", " "),
                         allow_abbrev=False,  # other code looks for whole flags in a command line
                         add_help=False)
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        self.main = self.add_argument_group("main flags")

    def error(self, message: str):
        line = one_line(f"error: {message} (see {self.prog} --help)")
        tell_torchrun(line)
        self.exit(2, line + "\n" if is_main() else None)

    def refuse(self, flag: str, wrong: object, sentence: str) -> None:
        """End with an error about a flag if it is wrong."""
        if wrong:
            self.error(f"argument --{flag}: {sentence}")


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
        raise argparse.ArgumentTypeError(f"one number, not {text}: for several GPUs start the training with torchrun, "
                                         f"as in {several}, without --gpu_id")
    return number(int, 0)(text)


gpu_number.__name__ = "int"  # argparse says "invalid int value"

# --- flags of the training scripts. Names and defaults are those of the authors' code. --------------------------------


# For --help only. The tables that decide, models.NETWORKS and data_loader.DATASETS, need PyTorch: ``Run`` and
# ``dataloader`` look a name up after parsing.
NETWORKS = "resnet8/14/20/32/44/56/110, wide_resnet20_8, vgg16/19, densenetd40k12/100k12, resnet18/34/50"
DATASETS = "CIFAR10, CIFAR100, DIGITS (needs no download), folder (your own images), imagenet"
DECODERS = ("pil", "fast")
COUNT, COUNT_OR_0 = number(int, 1), number(int, 0)
SHARE, AT_LEAST_0 = number(float, 0, high=1), number(float, 0)


def main_flags(g: argparse._ArgumentGroup) -> None:
    """What a training needs first."""
    g.add_argument("--model", default="resnet32",
                   help=f"{NETWORKS}, timm:NAME, torchvision:NAME, FILE.py:NAME")
    g.add_argument("--dataset", default="CIFAR10", help=DATASETS)
    g.add_argument("--data_dir", default="./Data", metavar="DIR", help="data folder, also for downloads")
    g.add_argument("--num_epochs", default=300, type=COUNT, help="length of the training")
    g.add_argument("--seed", default=0, type=number(int, 0, high=2**63 - 1),
                   help="fixes weights, data order, augmentation (default: 0)")
    g.add_argument("--resume", metavar="RUN",
                   help="continue the run in this folder, with the same flags; auto: this run if it was begun, else "
                        "start it")


def recipe_flags(p: Parser) -> None:
    """Optimization, data and network."""
    g = p.add_argument_group("optimization")
    g.add_argument("--batch_size", default=128, type=COUNT, help="images per step")
    g.add_argument("--optimizer", default="sgd", choices=("sgd", "adamw"), metavar="NAME",
                   help="sgd (Nesterov momentum 0.9) or adamw")
    g.add_argument("--lr", type=number(float, 0, open_end=True),
                   help="initial learning rate (default: 0.1, adamw 0.001)")
    g.add_argument("--schedule", type=COUNT, nargs="+", metavar="EPOCH",
                   help="divide it by 10 after these (default: 1/2, 3/4 of all)")
    g.add_argument("--cosine", action="store_true", help="cosine decay to 0 instead of --schedule")
    g.add_argument("--warmup", default=0, type=COUNT_OR_0, help="epochs of linear warm-up")
    g.add_argument("--wd", type=AT_LEAST_0, help="weight decay (default: 0.0005, adamw 0.05)")
    g.add_argument("--label_smoothing", default=0.0, type=SHARE, help="share of each label spread over all classes")
    g = p.add_argument_group("data (folder, imagenet: <data_dir>/train/<class>/*, and test/ or val/ or both)")
    g.add_argument("--image_size", type=number(int, 8, high=2048),
                   help="height and width (default: 32; imagenet 224; torchvision:, timm: if 32 is too small, theirs)")
    g.add_argument("--train_size", default=0, type=COUNT_OR_0,
                   help="train on N images, stratified, the same for every seed")
    g.add_argument("--val_size", default=0, type=COUNT_OR_0, help="choose the best epoch on N held-out training images")
    g.add_argument("--cache", default="on", choices=("on", "off"), help="off: stream images; large ones always")
    g.add_argument("--num_workers", default=8, type=COUNT_OR_0, help="threads or processes that read images")
    g = p.add_argument_group("network (docs/own_project.md)")
    g.add_argument("--dropout", default=0.0, type=AT_LEAST_0, help="dropout in VGG's classifier")
    g.add_argument("--efficient", action="store_true", help="DenseNet: recompute activations to save memory")
    g.add_argument("--pretrained", action="store_true", help="weights, mean and std of torchvision or timm")
    g.add_argument("--init", metavar="FILE", help="start from the weights in a .pth or .safetensors file")
    g.add_argument("--branch_at", metavar="MODULE", help="submodule at which the trunk ends and branches begin")
    g.add_argument("--classifier", metavar="MODULE", help="takes the features as input (default: last nn.Linear)")


def run_flags(p: Parser) -> None:
    """The run's files, and what it runs on."""
    g = p.add_argument_group("run folder")
    g.add_argument("--save_dir", default=".", metavar="DIR", help="runs: DIR/<dataset>/<method>/<model>")
    g.add_argument("--version", default="V0", help="suffix of the run's folder; V0: none")
    g.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    g.add_argument("--save_every", default=1, type=COUNT, help="epochs between checkpoints")
    g.add_argument("--save_steps", default=0, type=COUNT_OR_0, help="also save every N steps, for long epochs")
    g.add_argument("--log_every", default=100, type=COUNT, help="steps between progress lines")
    g = p.add_argument_group("device and speed (--amp, --compile, --tf32 and --decoder fast change rounding)")
    g.add_argument("--device", help="cuda, cuda:1, cpu (default: the GPU, else the CPU)")
    g.add_argument("--gpu_id", default=0, type=gpu_number, help="number of the GPU, without torchrun (default: 0)")
    g.add_argument("--amp", default="off", choices=("off", "bf16", "fp16"), metavar="TYPE",
                   help="half precision: bf16 or fp16")
    g.add_argument("--compile", action="store_true", help="torch.compile the training step; CUDA graphs on a GPU")
    g.add_argument("--tf32", action="store_true", help="TF32 in convolutions and matrix products")
    g.add_argument("--decoder", default="pil", choices=DECODERS, help="JPEG decoder; fast: simplejpeg")
    g.add_argument("--sync_bn", action="store_true", help="BatchNorm over the images of all processes")


def distillation_flags(p: Parser, title: str, temperature: float = 3.0) -> argparse._ArgumentGroup:
    """--loss and --temperature. Returns their group, for the method's own flags."""
    g = p.add_argument_group(title)
    g.add_argument("--loss", default="KL", choices=("KL", "CE"), help="divergence of students from targets")
    g.add_argument("--temperature", default=temperature, type=number(float, 0, open_end=True, high=1e6),
                   help="T: higher gives softer probabilities")
    return g


def ramp_up_flags(g: argparse._ArgumentGroup) -> None:
    """--alpha, and the flags of w(e) (``losses.ramp_up``)."""
    g.add_argument("--alpha", default=1.0, type=AT_LEAST_0, help="weight of the group loss")
    g.add_argument("--start_consistency", default=0.0, type=AT_LEAST_0, help="share of the epochs before the ramp-up")
    g.add_argument("--length", default=80.0, type=AT_LEAST_0, help="epochs of the ramp-up w(e); 0: none")


def group_flags(g: argparse._ArgumentGroup, students: str, based_on: str = "", mixed: bool = False) -> None:
    """The number of students, and whether they share a trunk. based_on: "branches" or "networks" if only that exists.

    mixed: the students may be different networks (--models). Then the method's targets are logits, which all have.
    """
    g.add_argument("--num_branches", default=4, type=number(int, 2, high=1000), help=f"m, number of {students}")
    if mixed:
        g.add_argument("--models", nargs="+", metavar="NAME",
                       help="a network for each student, instead of --model and --num_branches"
                            + ("" if based_on else " (with --MulStu and --ind or --avg)"))
    if not based_on:
        g.add_argument("--MulStu", action="store_true", help="network-based: whole networks instead of branches")
    g.add_argument("--choose_E", action="store_true", help="choose the best epoch by the ensemble (Table 4)")


def teacher_flags(g: argparse._ArgumentGroup, default: str | None, help: str) -> None:
    """Which pre-trained network, and where it is."""
    g.add_argument("--T_model", default=default, help=help)
    g.add_argument("--T_model_path", metavar="RUN",
                   help="the teacher's run (of a group, the deployed network), checkpoint or exported .pth or "
                        ".safetensors file (default: <save_dir>/<dataset>/<T_model>)")


def parse(p: Parser, argv: list[str] | None) -> argparse.Namespace:
    """Add the flags of every script to the method's own, parse, and check what argparse cannot."""
    main_flags(p.main)
    recipe_flags(p)
    run_flags(p)
    args = p.parse_args(argv)
    adamw = args.optimizer == "adamw"
    args.lr = args.lr or (1e-3 if adamw else 0.1)
    args.wd = (0.05 if adamw else 5e-4) if args.wd is None else args.wd
    schedule = args.schedule or []
    falls = args.num_epochs if args.cosine else (schedule or [-(-args.num_epochs // 2)])[0]
    p.refuse("schedule", args.cosine and schedule, "the learning rate falls by steps or as a --cosine, not both")
    p.refuse("warmup", args.warmup >= falls,
             f"must end before the learning rate falls, after epoch {falls}, not {args.warmup}")
    p.refuse("init", args.pretrained and args.init, "the weights start from a file or from --pretrained, not both")
    p.refuse("schedule", any(a >= b for a, b in zip(schedule, schedule[1:], strict=False)),
             f"epochs must increase, not {' '.join(map(str, schedule))}")
    p.refuse("overwrite", args.resume and args.overwrite, "a run is continued (--resume) or replaced, not both")
    p.refuse("version", Path(args.version).name != args.version, f"a name, not a path: {args.version!r}")
    p.refuse("version", not args.version.isprintable(),  # scripts/runs.sh has one line for each run
             f"a name without line breaks and other control characters, not {args.version!r}")
    p.refuse("dropout", args.dropout >= 1, f"must be less than 1, not {args.dropout:g}")
    if getattr(args, "models", None):
        several_networks(p, args, sys.argv[1:] if argv is None else argv)
    return args


def several_networks(p: Parser, args: argparse.Namespace, words: list[str]) -> None:
    """--models: set --model, which names the run, and --num_branches to what it says. words: the command line."""
    p.refuse("models", not getattr(args, "MulStu", True),
             "branches share the trunk of one network, use --model, or add --MulStu to --ind or --avg")
    p.refuse("models", len(set(args.models)) < 2,
             "names different networks, one for each student; for equal ones use --model and --num_branches")
    for flag in {"--model", "--num_branches"} & {word.partition("=")[0] for word in words}:
        p.refuse("models", True, f"names the {len(args.models)} students already, leave out {flag}")
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
