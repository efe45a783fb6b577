"""What a GPU does with this code: its tests, the times of steps, runs side by side, the hours of the paper's tables.

    sh scripts/gpu.sh                          # about ten minutes
    sh scripts/gpu.sh --device cpu --quick     # the same with tiny networks, in a minute or two, without a GPU

The times are those of benchmarks/step.py, with random images in the shapes of CIFAR-10 and ImageNet; the first losses
of every process must be those of the CPU. Everything is printed. The times of a GPU are also written to
results/gpu/<its name>.json, from which benchmarks/cost.py takes the hours.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import utils  # noqa: E402
from benchmarks import compare, cost  # noqa: E402
from runtime.device import environment, pick_device  # noqa: E402
from runtime.errors import UserError  # noqa: E402
from runtime.files import as_json, save  # noqa: E402

NETWORKS = {"resnet32": "CIFAR10", "densenetd40k12": "CIFAR10", "vgg16": "CIFAR10", "resnet110": "CIFAR10",
            "wide_resnet20_8": "CIFAR10", "resnet34": "imagenet"}  # of the paper's tables -> data set
MODES = ("--compile", "--tf32", "--amp bf16")  # of the first network, besides float32 without compiling
TESTS = "-m pytest -q -m gpu -n auto --maxprocesses 8 tests/test_cuda.py"  # side by side: compiling uses one core


def steps(flags: str, processes: int = 1) -> list[dict[str, float]]:
    """Run step.py in several processes at a time -> for each, {version: ms per step}. If one fails: []."""
    command = [sys.executable, "benchmarks/step.py", *flags.split()]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
               for _ in range(processes)]
    printed = [process.communicate()[0] for process in started]
    print(f"\n{processes} at a time: step.py {flags}", *printed, sep="\n", flush=True)
    if any(process.returncode for process in started):
        return []
    return [{name: float(ms) for name, ms in re.findall(r"^(OKDDip(?:, \w+)?) +([\d.]+)", text, re.MULTILINE)}
            for text in printed]


def measure(device: torch.device, quick: bool) -> tuple[dict, bool]:
    """-> all results, and whether everything worked. A failure is printed, and the rest continues."""
    about, batch_size = environment(device), 8 if quick else 128
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else about["device"]
    machine = {"kind": device.type, "name": name, "cuda": torch.version.cuda}
    machine |= {key: about[key] for key in ("torch", "revision")}
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    tests_passed = subprocess.run([sys.executable, *TESTS.split()], cwd=ROOT).returncode == 0
    common, times, rates, together = f"--device {device} --batch_size {batch_size}", {}, {}, {}
    few, many = ("--rounds 2",) * 2 if quick else ("--rounds 5 --steps 10", "--rounds 100 --steps 20")
    networks = {"resnet8": "CIFAR10"} if quick else NETWORKS
    first, modes = next(iter(networks)), MODES[quick:]  # on a CPU, compiling takes more than a minute
    for network, dataset in networks.items():
        for mode in ("", *modes) if network == first else ("",):
            flags = f"{network} {mode}".strip()
            ms = steps(f"{common} {few} --dataset {dataset} --model {flags}")
            times[flags] = ms[0] if ms else None
        if times[network]:
            _, _, classes, size = cost.DATA[dataset]
            method = compare.method("OKDDip", classes, model=network)
            operations, _ = cost.per_image(type(method), method.args, classes, size)
            rates[network] = batch_size * operations / (times[network]["OKDDip"] / 1000)
    for processes in (1, 4):  # many steps: processes that start a few seconds apart hardly matter
        ms = steps(f"{common} {many} --model {first} --ours", processes)
        together[str(processes)] = sum(1000 * batch_size / one["OKDDip"] for one in ms)
        print(f"together {together[str(processes)]:,.0f} images/s", flush=True)
    worked = tests_passed and all(times.values()) and all(together.values())
    return {"machine": machine, "quick": quick, "tests_passed": tests_passed, "steps": times,
            "operations_per_second": rates, "side_by_side": together}, worked


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--device", help="cuda, cuda:1, or with --quick cpu (default: the GPU)")
    p.add_argument("--quick", action="store_true", help="tiny networks, few images: tries the code, measures nothing")
    p.add_argument("--out", type=Path, metavar="FILE",
                   help="where to write the results (default: results/gpu/<the GPU>.json; with --quick nowhere)")
    args = p.parse_args(argv)
    if args.device is None and not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU here: --device cpu --quick tries the same code without one")
    if args.quick and args.out and args.out.resolve().parent == cost.MEASURED:
        raise UserError(f"--out {args.out}: results/gpu is for measurements of GPUs, and --quick measures nothing")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device = pick_device(args.device or "cuda")
    if device.type == "cpu" and not args.quick:
        raise UserError("--device cpu needs --quick: the full measurement is for GPUs")
    found, worked = measure(device, args.quick)
    if rates := found["operations_per_second"]:
        rows = [(f"{script}.sh", f"{cost.hours(new, rates):,.3g}")
                for script, _, new in cost.new_runs(("table5",) if args.quick else cost.SCRIPTS)]
        print("\none run at a time, of runs that no earlier script makes")
        print(compare.table(("", f"hours on one {found['machine']['name']}"), *rows))
    name = re.sub(r"\W+", "-", found["machine"]["name"].lower())
    if rates and (path := args.out or (None if args.quick else cost.MEASURED / f"{name}.json")):
        path.parent.mkdir(parents=True, exist_ok=True)
        save({path: as_json(found)})
        print(f"\nwritten: {path}")
    if args.quick:
        print("\n--quick tried the code; these numbers say nothing about speed")
    if not worked:
        sys.exit("a part failed, see above")


if __name__ == "__main__":
    utils.command(main)
