"""Use a finished run: measure it, export the network that is deployed, ask it about images.

    python evaluate.py CIFAR10/OKDDip/resnet32                           # figures, as a table or with --json
    python evaluate.py CIFAR10/OKDDip/resnet32 --export leader.onnx      # or .pth, .safetensors, .pt2
    python evaluate.py leader.onnx --images a.png b.jpg

RUN is a run's folder (its best.pth), a checkpoint of it, a checkpoint of the authors' code, or an exported file. The
figures have the names and, on the same machine, the values that they have in the run's metrics.jsonl (NLL is
``..test_loss``, the cross-entropy at T = 1); besides, of each row,

    ..test_ece           expected calibration error, 0..1
    ..test_accPerClass   top-1 in % of each class's images, null where there are none
"""

import json
import re
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import engine
import export
import parallel
import torch
from checkpoint import load_checkpoint
from errors import UserError
from run import LATER_FLAGS
from torch import Tensor, nn
from torch.nn import functional as F

import data_loader
import models
import train
import train_DML
import train_GL
import train_kd
import train_one
import utils
from losses import full_precision

# A method's name up to the first - or + -> the script that has its build(). "" is the baseline.
SCRIPTS = {"": train, "KD": train_kd, "OKDDip": train_GL, "ONE": train_one, "CL": train_one, "Ind": train_one,
           "DML": train_DML}
# The flags that build() reads, and those of an evaluation, for files that do not say them.
FLAGS = {"num_branches": 4, "MulStu": False, "aggregation": "attention", "no_leader": False, "ind": False, "avg": False,
         "bpscale": False, "dropout": 0.0, "efficient": False, "amp": "off", "tf32": False, "batch_size": 128,
         "num_workers": 8, "cache": "on", "data_dir": "./Data", **LATER_FLAGS}
BINS = 15  # of confidence, as in Guo et al. (2017)


def parse_args(argv: list[str] | None) -> Namespace:
    """The flags; exit code 2 with one line where they are wrong."""
    p = utils.Parser(__doc__, "RUN")
    p.add_argument("file", metavar="RUN", help="run folder (its best.pth is taken), checkpoint of a run or of the "
                                               "authors' code, or exported file")
    p.add_argument("--json", action="store_true", help="print JSON instead of text")
    g = p.add_argument_group("instead of measuring")
    g = g.add_mutually_exclusive_group()
    g.add_argument("--export", type=Path, metavar="FILE",
                   help=f"write the network that is deployed, alone; the ending chooses: {', '.join(export.FORMATS)}")
    g.add_argument("--images", nargs="+", metavar="IMAGE", help="print the classes of these image files, with "
                                                                "probabilities")
    g = p.add_argument_group("which network, and how much is told")
    g.add_argument("--branch", type=utils.number(int, 0), metavar="I",
                   help="student I of a group, from 0 (default: the leader where there is one; without, --export wants "
                        "one, and --images asks the ensemble)")
    g.add_argument("--top", type=utils.number(int, 1), default=5, metavar="N", help="classes that --images prints")
    g.add_argument("--overwrite", action="store_true", help="let --export replace a file")
    g = p.add_argument_group("data")
    g.add_argument("--data_dir", metavar="DIR", help="where the data is (default: the run's own; else ./Data)")
    g.add_argument("--dataset", choices=data_loader.DATASETS, metavar="NAME",
                   help=f"{', '.join(data_loader.DATASETS)} (default: the run's own; CIFAR10 for a checkpoint of the "
                        "authors' code; for an exported file with --data_dir, folder, or imagenet if its images are "
                        "224x224)")
    g = p.add_argument_group("checkpoints of the authors' code, which do not say what they are")
    g.add_argument("--model", choices=models.NETWORKS, metavar="NAME",
                   help=f"network: {', '.join(models.NETWORKS)} (default: resnet32)")
    g.add_argument("--method", choices=["baseline", *filter(None, SCRIPTS)],
                   help="method (default: told by the names of the parameters)")
    g = p.add_argument_group("how")
    g.add_argument("--batch_size", type=utils.number(int, 1), help="images at once (default: the run's own; else 128; "
                                                                   "on a GPU at least 1024, of large images 256)")
    g.add_argument("--num_workers", type=utils.number(int, 0), help="threads or processes that decode image files "
                                                                    "(default: the run's own; else 8)")
    g.add_argument("--gpu_id", default=0, type=utils.number(int, 0), help="which GPU, where there are several")
    g.add_argument("--device", help="cuda, cuda:1, cpu, ... (default: the GPU where there is one, else the CPU; "
                                    "--export, .onnx and .pt2 always work on the CPU)")
    p.set_defaults(sync_bn=False)  # a flag of training that pick_device looks at
    return p.parse_args(argv)


# --- what a file holds ------------------------------------------------------------------------------------------------


class Subject(NamedTuple):
    """A network or group, and what its file says of it. rows, predict: those of engine.Method.

    flags: the run's, with what the command line says instead. size: height and width of its images.
    """

    path: Path
    method: str
    model: nn.Module
    rows: dict[str, str]
    predict: Callable[[nn.Module, Tensor], tuple[Tensor, dict[str, Tensor]]]
    flags: Namespace
    num_classes: int
    classes: list[str] | None
    mean: list[float]
    std: list[float]
    size: int
    epoch: int | None = None


def read(args: Namespace) -> Subject:
    """Whatever --help says that RUN may be; UserError where it is none of it."""
    path = Path(args.file)
    path = path / "best.pth" if path.is_dir() else path
    if path.suffix in export.FORMATS and path.suffix != ".pth":
        return exported(path, args)
    checkpoint = load_checkpoint(path)
    if "flags" in checkpoint:
        return run(path, checkpoint, args)
    if {"state_dict", "model", "classes", "mean", "std"} <= checkpoint.keys():
        return exported(path, args)
    return original(path, checkpoint.get("state_dict", checkpoint), args)


def given(args: Namespace, **own) -> Namespace:
    """The file's own flags, and those of the command line in place of them."""
    chosen = {name: getattr(args, name) for name in ("dataset", "data_dir", "batch_size", "num_workers")}
    return Namespace(**FLAGS | own | {name: value for name, value in chosen.items() if value is not None})


def refuse_other(path: Path, args: Namespace, **known: str) -> None:
    """UserError where --model or --method contradicts the file."""
    for name, value in known.items():
        if getattr(args, name) not in (None, value):
            raise UserError(f"{path} says that its {name} is {value}: leave out --{name} {getattr(args, name)}")


def image_size(dataset: str) -> int:
    """Height and width of a data set's images."""
    return 224 if dataset == "imagenet" else 32


def run(path: Path, checkpoint: dict, args: Namespace) -> Subject:
    """A checkpoint of this project: its group as its script builds it."""
    try:
        own, classes, mean, std, weights = (checkpoint[k] for k in ("flags", "classes", "mean", "std", "state_dict"))
        prefix = re.split("[-+]", own["method"])[0]
        if prefix not in SCRIPTS:
            raise UserError(f"{path} is of a method that evaluate.py does not know, {own['method']}: put its script "
                            "into SCRIPTS there")
        flags = given(args, **own)
        if flags.dataset not in data_loader.DATASETS:
            raise UserError(f"{path} is of no data set that is known here, {flags.dataset}: name one with --dataset")
        size, epoch = image_size(own["dataset"]), (checkpoint.get("history") or [{}])[-1].get("epoch")
        export.check_normalisation(mean, std)
        model, rows, predict = SCRIPTS[prefix].build(flags, len(classes))
        model.load_state_dict(weights)
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a checkpoint of a run that can be rebuilt ({type(error).__name__}: "
                        f"{' '.join(str(error).split())[:200]})") from error
    refuse_other(path, args, model=flags.model, method=prefix or "baseline")
    return Subject(path, own["method"] or "baseline", model.eval(), rows, predict, flags, len(classes), classes, mean,
                   std, size, epoch)


def exported(path: Path, args: Namespace) -> Subject:
    """A file that --export wrote."""
    network = export.load(path)
    refuse_other(path, args, model=network.name, method="baseline")
    large = network.size == image_size("imagenet")
    flags = given(args, model=network.name, dataset=args.data_dir and ("imagenet" if large else "folder"))

    def predict(model, images):
        return model(images).unsqueeze(1), {}

    count = len(network.classes)
    classes = None if network.classes == numbers(count) else network.classes  # of a checkpoint of the authors' code
    return Subject(path, "exported", network, {"": "network"}, predict, flags, count, classes, network.mean,
                   network.std, network.size)


def original(path: Path, weights: dict[str, Tensor], args: Namespace) -> Subject:
    """A checkpoint under the authors' parameter names, or bare weights of ``create_model``'s."""
    name = args.model or "resnet32"
    try:
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
        method, group = recognise(weights)
        if args.method:
            method = args.method.replace("baseline", "")
            group |= {"ind": method == "Ind", "avg": method == "CL"}
        flags = given(args, model=name, dataset="CIFAR10", **group)
        num_classes = count_classes(weights)
        model, rows, predict = SCRIPTS[method].build(flags, num_classes)
        if any(key.startswith("trunk.") for key in weights):
            model.load_state_dict(weights)
        else:
            models.load_official_state_dict(model, weights)
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        if any(key.startswith("trunks.") for key in weights):
            raise UserError(f"{path} holds the bare weights of a group of this project: evaluate the run's folder or "
                            "its best.pth, which say which") from error
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not hold the weights of a {name}, or of a group of them, under the authors' "
                        f"names ({reason}): say what it is with --model and --method") from error
    mean, std = data_loader.normalisation(flags.dataset, flags.num_workers, flags.data_dir)
    return Subject(path, method or "baseline", model.eval(), rows, predict, flags, num_classes, None, mean, std,
                   image_size(flags.dataset))


def recognise(weights: dict[str, Tensor]) -> tuple[str, dict]:
    """-> the method that the authors' parameter names tell of, "" for a single network, and its flags.

    ONE has a gate, OKDDip an attention; what else has numbered students is taken for individual branches.
    """
    numbers = [re.match(r"(?:stu|Branch|norm_final_|fc_|(?:layer|classifier)\d_)(\d+)\.", key) for key in weights]
    students = {int(number[1]) for number in numbers if number}
    if not students:
        return "", {}
    method = "OKDDip" if "query_weight.weight" in weights else "ONE" if "control_v1.weight" in weights else "Ind"
    return method, {"num_branches": max(students) + 1, "MulStu": any(key.startswith("stu") for key in weights),
                    "ind": method == "Ind"}


def count_classes(weights: dict[str, Tensor]) -> int:
    """The length of the last classifier's bias."""
    biases = [key for key in weights if re.search(r"(?:^|\.)(?:fc|classifier)[^.]*(?:\.\d+)?\.bias$", key)]
    if not biases:
        raise LookupError("it has no classifier")
    return len(weights[biases[-1]])


# --- what is deployed -------------------------------------------------------------------------------------------------


def deployed_row(subject: Subject, branch: int | None) -> str | None:
    """The row of what is deployed: --branch, else the leader, else the only network; None for a group without one."""
    if list(subject.rows) == [""]:
        if branch is not None:
            raise UserError(f"{subject.path} holds one network: leave out --branch {branch}")
        return ""
    if branch is None:
        return "stu_" if "stu_" in subject.rows else None
    students = subject.model.num_branches
    if branch >= students:
        raise UserError(f"{subject.path} has the branches 0 to {students - 1}, not {branch}: take one of these")
    return "stu_" if "stu_" in subject.rows and branch == students - 1 else f"stu{branch}"


def plain_network(subject: Subject, row: str) -> nn.Module:
    """The network of a row that is one student, sharing its weights with the group."""
    if row == "":
        return subject.model
    return subject.model.student(-1 if row == "stu_" else int(row.removeprefix("stu")))


def device_of(subject: Subject, args: Namespace) -> torch.device:
    """Where it computes; what is not PyTorch's own, on the CPU."""
    return torch.device("cpu") if isinstance(subject.model, export.Foreign) else utils.pick_device(args)


def class_names(subject: Subject) -> list[str]:
    """The classes' names, their numbers where the file does not say them."""
    return subject.classes or numbers(subject.num_classes)


def numbers(num_classes: int) -> list[str]:
    """What classes are called that have no names."""
    return [str(c) for c in range(num_classes)]


def autocast(subject: Subject, device: torch.device) -> torch.autocast:
    """As the run measured itself."""
    amp = engine.AMP.get(subject.flags.amp)
    return torch.autocast(device.type, dtype=amp, enabled=amp is not None)


# --- figures ----------------------------------------------------------------------------------------------------------


def further_sums(log_p: Tensor, top1: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What calibration error and per-class accuracy are made of, summed over a batch.

    log_p [B, R, C], top1 [B, R], labels [B] -> gaps [R, BINS]: hits minus confidence of the images in each bin
    ((k - 1) / BINS, k / BINS] of confidence; class_hits [R, C]; class_images [C].
    """
    confidence = log_p.exp().amax(-1).double()  # [B, R]; of a NaN the error is NaN
    bins = F.one_hot((confidence.nan_to_num() * BINS).ceil().long().clamp(1, BINS) - 1, BINS)  # [B, R, BINS]
    classes = F.one_hot(labels, log_p.shape[-1]).double()  # [B, C]
    top1 = top1.double()
    return {"gaps": ((top1 - confidence).unsqueeze(-1) * bins).sum(0), "class_hits": top1.mT @ classes,
            "class_images": classes.sum(0)}


def name_further(figures: dict, rows: dict[str, str]) -> dict:
    """The figures of engine.evaluate, those of ``further_sums`` by their names in JSON.

    ECE = sum over bins of (bin's share of the images) |accuracy - confidence| in it (Guo et al., "On calibration of
    modern neural networks", ICML 2017), which is |mean over all images of the bin's gaps|.
    """
    gaps, hits, images = (figures.pop(name) for name in ("gaps", "class_hits", "class_images"))
    for row, row_gaps, row_hits in zip(rows, gaps, hits, strict=True):
        figures[f"{row}test_ece"] = sum(map(abs, row_gaps))
        figures[f"{row}test_accPerClass"] = [100 * h / n if n else None for h, n in zip(row_hits, images, strict=True)]
    return figures


def measure(subject: Subject, args: Namespace) -> dict:
    """All figures of the test images, as --json prints them."""
    flags, row = subject.flags, deployed_row(subject, args.branch)
    if flags.dataset is None:
        raise UserError(f"{subject.path} does not say which data it is for: name it with --data_dir, --dataset or both")
    if image_size(flags.dataset) != subject.size:
        raise UserError(f"{subject.path} takes images of {subject.size}x{subject.size} pixels, --dataset "
                        f"{flags.dataset} has others: folder is 32x32, imagenet 224x224, of any class folders")
    device = device_of(subject, args)
    loader = data_loader.test_images(flags.dataset, flags.batch_size, flags.num_workers, flags.data_dir,
                                     mean=subject.mean, std=subject.std, device=device, cache=flags.cache == "on")
    check_classes(subject, loader.classes)
    utils.set_precision(flags.tf32)
    model = subject.model.to(device, memory_format=torch.channels_last)
    precision = autocast(subject, device)
    figures = engine.evaluate(subject, model, loader, autocast=precision, further=further_sums)
    return {
        "file": str(subject.path), "epoch": subject.epoch, "method": subject.method, "model": flags.model,
        "dataset": flags.dataset, "data_dir": flags.data_dir, "images": loader.num_images, "classes": loader.classes,
        "device": str(device), "rows": subject.rows, "deployed": row,
        "figures": name_further(figures, subject.rows),
        "speed": speed(subject, row, loader.batch_size, device, precision),
    }


def check_classes(subject: Subject, classes: list[str]) -> None:
    """UserError where the data has other classes than the network."""
    data = f"--dataset {subject.flags.dataset} in {subject.flags.data_dir}"
    if len(classes) != subject.num_classes:
        raise UserError(f"{subject.path} tells {subject.num_classes} classes apart and {data} has {len(classes)}: name "
                        "the data that it was trained on with --dataset and --data_dir")
    differing = [f"{a} there, {b} here" for a, b in zip(class_names(subject), classes, strict=True) if a != b]
    if subject.classes and differing:
        raise UserError(f"{subject.path} was trained on other classes than those of {data} "
                        f"({'; '.join(differing[:5])}): name its own data with --dataset and --data_dir")


@torch.inference_mode()
def speed(subject: Subject, row: str | None, batch_size: int, device: torch.device, precision: torch.autocast) -> dict:
    """images/s and parameters of what is deployed, alone, and of the group: medians of forward passes of one batch,
    taking turns, so that what else the machine does meets both."""
    images = torch.randn(batch_size, 3, subject.size, subject.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    networks = {"deployed": plain_network(subject, "stu0" if row is None else row), "group": subject.model}
    if row == "":
        del networks["group"]
    seconds = {name: [] for name in networks}
    start = time.perf_counter()
    while len(seconds["deployed"]) < 4 or len(seconds["deployed"]) < 8 and time.perf_counter() - start < 10:
        for name, network in networks.items():
            seconds[name].append(timed(network, images, precision))
    return {"batch_size": batch_size} | {
        name: {"images_per_second": batch_size / statistics.median(seconds[name][1:]),  # the first one warms up
               "parameters": parameters(network, subject)} for name, network in networks.items()}


def timed(network: nn.Module, images: Tensor, precision: torch.autocast) -> float:
    """Seconds of one forward pass."""
    wait = torch.cuda.synchronize if images.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    with precision:
        network(images)
    wait()
    return time.perf_counter() - start


def parameters(network: nn.Module, subject: Subject) -> int:
    """How many weights a network has."""
    if isinstance(network, export.Foreign):  # which keeps them to itself
        network = models.create_model(network.name, subject.num_classes)
    return sum(p.numel() for p in network.parameters())


# --- tables -----------------------------------------------------------------------------------------------------------


def table(result: dict) -> str:
    """A result of ``measure`` as text."""
    figures, rows = result["figures"], result["rows"]
    epoch = f", epoch {result['epoch']}" if result["epoch"] else ""
    lines = [f"{result['file']}: {result['method']}, {result['model']}{epoch}; {result['images']:,} test images of "
             f"{result['dataset']}, on {result['device']}", "", f"{'':20}{'top-1':>8}{'top-5':>8}{'NLL':>9}{'ECE':>9}"]
    for row, name in rows.items():
        cells = (figures[f"{row}test_{figure}"] for figure in ("accTop1", "accTop5", "loss", "ece"))
        lines.append("{:20}{:8.2f}{:8.2f}{:9.4f}{:9.4f}".format(name, *cells))
    if "mean_test_accTop1" in figures:
        name = f"mean of the {rows['stu0'].split()[0]}s"
        lines.append(f"{name:20}{figures['mean_test_accTop1']:8.2f}{figures['mean_test_accTop5']:8.2f}")
    if "dist" in figures:
        lines.append(f"{'diversity':20}{figures['dist']:8.4f}")
    if "attention" in figures:
        peers = [name for row, name in rows.items() if re.fullmatch(r"stu\d+", row)]
        lines += ["", f"{'attention of, to':20}" + "".join(f"{name:>9}" for name in peers)]
        lines += [f"{name:20}" + "".join(f"{weight:9.4f}" for weight in weights)
                  for name, weights in zip(peers, figures["attention"], strict=True)]
    return "\n".join([*lines, "", *class_lines(result), "", *speed_lines(result)])


def class_lines(result: dict) -> list[str]:
    """Top-1 of each class: of what is deployed, and beside it of the ensemble."""
    rows = dict.fromkeys(row for row in (result["deployed"], "") if row is not None)
    if len(result["classes"]) > 100:
        return [f"top-1 of each of the {len(result['classes'])} classes: --json"]
    columns = [result["figures"][f"{row}test_accPerClass"] for row in rows]
    lines = [f"{'top-1 by class':20}" + "".join(f"{result['rows'][row]:>10}" for row in rows)]
    for name, *values in zip(result["classes"], *columns, strict=True):
        cells = ("-" if value is None else f"{value:.2f}" for value in values)
        lines.append(f"{name:20}" + "".join(f"{cell:>10}" for cell in cells))
    return lines


def speed_lines(result: dict) -> list[str]:
    """images/s and parameters as text."""
    speed, row = dict(result["speed"]), result["deployed"]
    title = f"in batches of {speed.pop('batch_size')}"
    names = {"deployed": "one student" if row is None else result["rows"][row], "group": "the group"}
    return [f"{title:20}{'images/s':>10}{'parameters':>13}",
            *(f"{names[k]:20}{v['images_per_second']:10,.0f}{v['parameters']:13,}" for k, v in speed.items())]


# --- images, files ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def ask(subject: Subject, args: Namespace) -> dict:
    """The first --top classes of each of --images, as --json prints them; prepared as test images are."""
    device, row = device_of(subject, args), deployed_row(subject, args.branch)
    row = "" if row is None else row
    utils.set_precision(subject.flags.tf32)
    model = subject.model.to(device, memory_format=torch.channels_last)
    normalise = data_loader.Normalise(subject.mean, subject.std, device)
    names, found = class_names(subject), []
    for first in range(0, len(args.images), subject.flags.batch_size):
        files = args.images[first:first + subject.flags.batch_size]
        pixels = torch.stack([data_loader.load_image(file, subject.size == 224) for file in files])
        with autocast(subject, device):
            logits = subject.predict(model, normalise(pixels.to(device)))[0][:, list(subject.rows).index(row)]
        if not logits.isfinite().all():
            raise UserError(f"{subject.path} answers with what is not a number: its weights are damaged, or of a "
                            "training that diverged")
        top = full_precision(logits).softmax(-1).topk(min(args.top, len(names)))
        for file, values, indices in zip(files, top.values.tolist(), top.indices.tolist(), strict=True):
            found.append({"file": file, "top": [{"class": names[c], "probability": p}
                                                for c, p in zip(indices, values, strict=True)]})
    return {"file": str(subject.path), "network": subject.rows[row], "images": found}


def answers(result: dict) -> str:
    """A result of ``ask`` as text."""
    lines = [f"{result['file']}, {result['network']}"]
    for image in result["images"]:
        lines += ["", image["file"], *(f"{100 * top['probability']:8.2f} %  {top['class']}" for top in image["top"])]
    return "\n".join(lines)


def export_network(subject: Subject, args: Namespace) -> dict:
    """Write the network that is deployed to --export; -> what was written."""
    row = deployed_row(subject, args.branch)
    if row is None:
        raise UserError(f"{subject.path} is a group without a leader: choose one of its {subject.model.num_branches} "
                        "students with --branch")
    if isinstance(subject.model, export.Foreign):
        raise UserError(f"{subject.path} does not give its weights away: export the run itself, or a .pth or "
                        ".safetensors file of it")
    metadata = export.about(subject.flags.model, class_names(subject), subject.mean, subject.std, subject.size)

    def logits(images: Tensor) -> Tensor:
        return subject.predict(subject.model, images)[0][:, list(subject.rows).index(row)]

    batches = check_batches(subject)
    worst = export.export(args.export, plain_network(subject, row), metadata, logits, batches)
    return {"file": str(args.export), "bytes": args.export.stat().st_size, "of": str(subject.path),
            "network": subject.rows[row], "model": subject.flags.model, "largest_difference": worst,
            "compared_on": "random images" if len(batches) == 2 else "random and test images"}


def check_batches(subject: Subject) -> list[Tensor]:
    """Five random images, one, and eight test images where they are at hand."""
    generator = torch.Generator().manual_seed(0)
    shape = (5, subject.size, subject.size, 3)
    noise = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    fits = subject.flags.dataset and image_size(subject.flags.dataset) == subject.size
    real = data_loader.glimpse(subject.flags.dataset, subject.flags.data_dir, 8) if fits else None
    normalise = data_loader.Normalise(subject.mean, subject.std, torch.device("cpu"))
    return [normalise(images) for images in (noise, noise[:1], real) if images is not None]


def said(result: dict) -> str:
    """A result of ``export_network`` as text."""
    return (f"{result['file']}: {result['network']} of {result['of']}, {result['model']}, {result['bytes']:,} bytes; "
            f"logits on {result['compared_on']} differ from the run's by at most {result['largest_difference']:.1e}")


def main(argv: list[str] | None = None) -> None:
    """Measure, export or ask, and print; UserError where the file, the data or a flag is wrong."""
    args = parse_args(argv)
    if parallel.world_size() > 1:
        raise UserError("evaluate.py works in one process: start it without torchrun")
    if args.export:
        if args.export.name in utils.FILES and (args.export.parent / "parameters.json").exists():
            raise UserError(f"{args.export} belongs to a run, which would be lost: export under another name")
        export.check_target(args.export, args.overwrite)
    work, text = (export_network, said) if args.export else (ask, answers) if args.images else (measure, table)
    result = work(read(args), args)
    print(json.dumps(result, indent=2) if args.json else text(result))


if __name__ == "__main__":
    utils.command(main)
