"""What a GPU does with this code: its tests, the times of all parts, how many runs fit side by side, the paper's cost.

    sh scripts/gpu.sh                          # about ten minutes
    sh scripts/gpu.sh --device cpu --quick     # the same with tiny networks, in a minute, to try it without a GPU

The images are random, in the shapes of CIFAR-10 and ImageNet: times do not depend on pixels. Everything is printed. The
times of a GPU are also written to results/gpu/<its name>.json, from which benchmarks/cost.py and docs/hardware.md take
the hours of the paper's tables.
"""

import argparse
import multiprocessing
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import utils  # noqa: E402
from benchmarks import compare, cost, evaluate, loader, step  # noqa: E402
from data_loader import Cached  # noqa: E402
from runtime.device import environment, pick_device, seed_everything, set_precision  # noqa: E402
from runtime.errors import UserError, first_words  # noqa: E402
from runtime.files import as_json, save  # noqa: E402
from training import evaluation  # noqa: E402
from training.step import Trainer  # noqa: E402

PRECISIONS = {"fp32": [], "TF32": ["--tf32"], "bf16": ["--amp", "bf16"], "fp16": ["--amp", "fp16"]}
NETWORKS = {"CIFAR10": ("resnet32", "densenetd40k12", "vgg16", "resnet110", "wide_resnet20_8"),
            "imagenet": ("resnet34",)}  # of the paper's tables


class Sizes:
    """How much is measured."""

    networks, model, batch_size, test_batch_size, steps, warm_up = NETWORKS, "resnet32", 128, 1024, 30, 10
    images, test_images, repeats, compiled, precisions = 50_000, 10_000, 3, True, tuple(PRECISIONS)
    at_a_time, seconds, scripts = (1, 2, 4, 8), 15, cost.SCRIPTS


class Quick(Sizes):
    """A minute on a CPU. Compiling takes longer than that, and so do convolutions in fp16."""

    networks, model, batch_size, test_batch_size, steps, warm_up = {"CIFAR10": ("resnet8",)}, "resnet8", 8, 8, 2, 1
    images, test_images, repeats, compiled, precisions = 32, 16, 1, False, ("fp32", "TF32", "bf16")
    at_a_time, seconds, scripts = (2,), 0.5, ("table5",)


# --- what is measured -------------------------------------------------------------------------------------------------


def run_tests() -> dict[str, int]:
    """The tests that need a GPU -> how many passed, failed, were skipped. Side by side: compiling uses one core."""
    side_by_side = ["-n", "auto", "--maxprocesses", "8"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *side_by_side, "tests/test_cuda.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout[-300:])}
    if done.returncode or not counts:
        print(done.stdout[-5000:], done.stderr[-2000:])
    return counts or {"failed": 1}


def steps(sizes: type[Sizes], device: torch.device) -> dict[str, dict[str, float]]:
    """ms of a step of OKDDip, in each precision: plain, ours, and ours compiled."""
    found = {}
    for name in sizes.precisions:
        torch.compiler.reset()
        args = step.parse_args(["--model", sizes.model, "--batch_size", str(sizes.batch_size), "--pairs",
                                str(sizes.steps), *PRECISIONS[name], *(["--compile"] if sizes.compiled else [])])
        set_precision(args.tf32)
        try:
            _, seconds = step.compete(args, device)
            found[name] = {version: 1000 * statistics.median(s) for version, s in seconds.items()}
        finally:
            set_precision(tf32=False)
    return found


def loaders(sizes: type[Sizes], device: torch.device) -> dict[str, float]:
    """Images per second of each loader."""
    args = loader.parse_args(["--images", str(sizes.images), "--plain_images", str(sizes.images // 5), "--batch_size",
                              str(sizes.batch_size), "--repeats", str(sizes.repeats)])
    _, _, per_image = loader.compete(args, device)
    return {name: 1 / statistics.median(seconds) for name, seconds in per_image.items()}


def evaluations(sizes: type[Sizes], device: torch.device) -> dict[str, float]:
    """Seconds of an evaluation of OKDDip, in each way."""
    args = evaluate.parse_args(["--model", sizes.model, "--images", str(sizes.test_images), "--plain_images",
                                str(sizes.test_images // 4), "--repeats", str(sizes.repeats), "--batch_size",
                                str(sizes.test_batch_size)])
    _, seconds = evaluate.compete(args, device)
    return {name: statistics.median(s) for name, s in seconds.items()}


def train(trainer: Trainer, batches: Cached, seconds: float = float("inf")) -> float:
    """An epoch, or as many as fit into the seconds -> images per second."""
    trainer.model.train()
    begin, images, epoch = time.perf_counter(), 0, 0
    while epoch == 0 or seconds < float("inf"):
        batches.set_epoch(epoch)
        for batch, labels in batches:
            trainer.step(batch, labels, 0.5)
            images += len(labels)
            if time.perf_counter() - begin > seconds:
                compare.synchronise(trainer.device)
                return images / (time.perf_counter() - begin)
        epoch += 1
    compare.synchronise(trainer.device)
    return images / (time.perf_counter() - begin)


def prepared(name: str, sizes: type[Sizes], device: torch.device) -> tuple[Trainer, Cached, Cached]:
    """A training after its first steps, and its loaders."""
    data = compare.random_data(sizes.images, sizes.test_images, seed=0)
    trainer = Trainer(compare.method(name, 10, model=sizes.model), 0.1, 5e-4, [150, 225], device)
    batches = Cached(data.train, data, sizes.batch_size, device, augment=True)
    for _, (images, labels) in zip(range(sizes.warm_up), batches, strict=False):
        trainer.step(images, labels, 0.5)
    compare.synchronise(device)
    return trainer, batches, Cached(data.test, data, sizes.test_batch_size, device)


def epochs(sizes: type[Sizes], device: torch.device) -> dict[str, dict[str, float]]:
    """Seconds of an epoch's training and of its evaluation, of a baseline and two groups."""
    found = {}
    for name in ("baseline", "OKDDip", "ONE"):
        trainer, batches, test = prepared(name, sizes, device)
        method = compare.method(name, 10, model=sizes.model)
        method.model = trainer.model
        training = sizes.images / train(trainer, batches)
        evaluation.evaluate(method, test)  # cuDNN chooses its algorithms
        begin = time.perf_counter()
        evaluation.evaluate(method, test)
        found[name] = {"training": training, "evaluation": time.perf_counter() - begin}
    return found


def start(device: torch.device) -> None:
    """What every process does first. On a CPU, the tiny networks of --quick are faster in one thread."""
    pick_device(str(device))
    set_precision(tf32=False)
    seed_everything(0)
    if device.type == "cpu":
        torch.set_num_threads(1)


def one_of_several(sizes: type[Sizes], device: torch.device, barrier, results) -> None:
    """A process that trains at the same time as others."""
    try:
        start(device)
        trainer, batches, _ = prepared("OKDDip", sizes, device)
        barrier.wait(300)
        results.put(train(trainer, batches, sizes.seconds))
    except Exception:
        barrier.abort()  # the others wait for this one
        raise


def side_by_side(sizes: type[Sizes], device: torch.device) -> dict[str, float]:
    """Number of trainings at a time (OKDDip, a process each) -> images per second of all of them together."""
    context, found = multiprocessing.get_context("spawn"), {}
    for count in sizes.at_a_time:
        barrier, results = context.Barrier(count), context.SimpleQueue()
        processes = [context.Process(target=one_of_several, args=(sizes, device, barrier, results))
                     for _ in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            print(f"{count} trainings at a time do not fit")
            break
        found[str(count)] = sum(results.get() for _ in processes)
    return found


def rates(sizes: type[Sizes], device: torch.device) -> dict[str, float]:
    """Network -> operations per second of a training step of OKDDip, counted as in cost.py."""
    found = {}
    for dataset, names in sizes.networks.items():
        _, _, classes, size = cost.DATA[dataset]
        batch_size = 2 * sizes.batch_size if dataset == "imagenet" else sizes.batch_size
        for name in names:
            method = compare.method("OKDDip", classes, model=name)
            operations, _ = cost.per_image(type(method), method.args, classes, size)
            trainer = Trainer(method, 0.1, 5e-4, [150, 225], device)
            images = torch.randn(batch_size, 3, size, size, device=device)
            images = images.contiguous(memory_format=torch.channels_last)
            labels = torch.randint(classes, (batch_size,), device=device)
            turns = {name: lambda t=trainer, x=images, y=labels: t.step(x, y, 0.5)}
            compare.in_turns(turns, sizes.warm_up, device)
            seconds = compare.in_turns(turns, sizes.steps, device)[name]
            found[name] = batch_size * operations / statistics.median(seconds)
            del method, trainer, images, turns  # the next network needs the memory
    return found


# --- output -----------------------------------------------------------------------------------------------------------


def machine(device: torch.device) -> dict[str, str]:
    """Device, driver and versions."""
    about, driver = environment(device), "none"
    name = about["device"]
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
        except (OSError, subprocess.CalledProcessError, IndexError):
            driver = "unknown"
    return {"kind": device.type, "name": str(name), "driver": driver, "torch": str(about["torch"]),
            "cuda": str(torch.version.cuda), "revision": str(about["revision"])}


def show(title: str, unit: str, values: dict) -> None:
    """A measurement as a table: a line for each name, and a column for each part."""
    print(f"\n{title}" + (f" ({unit})" if any(isinstance(value, dict) for value in values.values()) else ""))
    rows = {name: value if isinstance(value, dict) else {unit: value} for name, value in values.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    print(compare.table(("", *columns), *((name, *(digits(row.get(column)) for column in columns))
                                          for name, row in rows.items())), flush=True)


def digits(value: float | None) -> str:
    """Three digits, but no fewer than there are in front of the point."""
    if value is None:
        return "-"
    return f"{value:.3g}" if value < 100 or value >= 1e9 else f"{value:,.0f}"


def measure(sizes: type[Sizes], device: torch.device) -> tuple[dict, bool]:
    """-> all results, and whether all of it worked. What fails is printed, and the rest goes on."""
    about = machine(device)
    print(f"{about['name']}, driver {about['driver']}, torch {about['torch']} for CUDA {about['cuda']}, "
          f"revision {about['revision'][:12]}", flush=True)
    found, worked = {"machine": about}, True
    parts: dict[str, tuple[str, str, Callable]] = {
        "tests": ("tests/test_cuda.py", "tests", lambda *_: run_tests()),
        "steps": (f"a step of OKDDip, {sizes.model}, batches of {sizes.batch_size}", "ms", steps),
        "loaders": ("loaders", "images/s", loaders),
        "evaluations": (f"an evaluation of OKDDip, {sizes.test_images:,} images", "s", evaluations),
        "epochs": (f"an epoch, {sizes.images:,} and {sizes.test_images:,} images", "s", epochs),
        "side_by_side": ("trainings of OKDDip side by side", "images/s, all together", side_by_side),
        "operations_per_second": ("steps of OKDDip", "operations/s", rates),
    }
    for name, (title, unit, function) in parts.items():
        try:
            found[name] = function(sizes, device)
            show(title, unit, found[name])
        except (RuntimeError, SystemExit) as error:  # out of memory, or two versions that disagree
            worked = False
            print(f"\n{title}: failed: {first_words(error)}", flush=True)
    return found, worked and not {"failed", "error", "errors"} & found["tests"].keys()


def hours(found: dict, sizes: type[Sizes]) -> None:
    """Print the hours of the paper's tables and figures."""
    by_network = found.get("operations_per_second")
    if not by_network:
        return
    lines = {script: new for script, _, new in cost.new_runs(sizes.scripts)}
    show("one run at a time, of runs that no earlier script makes", f"hours on one {found['machine']['name']}",
         {f"{script}.sh": cost.hours(new, by_network) for script, new in lines.items()})


def parse_args(argv: list[str] | None):
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--device", help="cuda, cuda:1, or with --quick cpu (default: the GPU)")
    p.add_argument("--quick", action="store_true", help="tiny networks, few images: tries the code, measures nothing")
    p.add_argument("--out", type=Path, metavar="FILE",
                   help="where to write the results (default: results/gpu/<the GPU>.json; with --quick nowhere)")
    args = p.parse_args(argv)
    if args.device is None and not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU here: --device cpu --quick tries the same code without one")
    if args.quick and args.out and args.out.resolve().parent == cost.MEASURED:
        raise UserError(f"--out {args.out}: results/gpu holds measurements of GPUs, and --quick measures nothing")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device, sizes = pick_device(args.device or "cuda"), Quick if args.quick else Sizes
    if device.type == "cpu" and not args.quick:
        raise UserError("--device cpu needs --quick: the full measurement is for GPUs")
    start(device)
    found, worked = measure(sizes, device)
    hours(found, sizes)
    name = re.sub(r"\W+", "-", found["machine"]["name"].lower())
    path = args.out or (None if args.quick else cost.MEASURED / f"{name}.json")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        save({path: as_json(found | {"quick": args.quick})})
        print(f"\nwritten: {path}")
    if args.quick:
        print("\n--quick tried the code; these numbers say nothing about speed")
    if not worked:
        sys.exit("a part failed, see above")


if __name__ == "__main__":
    utils.command(main)
