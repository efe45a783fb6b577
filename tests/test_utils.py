import importlib
import os
import random
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import ROOT, few_digits

import data_loader
import losses
import methods
import models
import utils
from deployment.formats import FORMATS
from training import loop
from training.run import Run

SCRIPTS = list(dict.fromkeys(entry.module for entry in methods.METHODS.values()))

REFUSED = [
    ("train", "--model resnet33", "unknown network 'resnet33'; known are resnet8, "),
    ("train_DML", "--models resnet8 resnet9", "unknown network 'resnet9'"),
    ("train", "--dataset SVHN", "unknown dataset 'SVHN'; known are CIFAR10, "),
    ("train_kd", "--T_model resnet33", "unknown network 'resnet33'; known are resnet8, "),
    ("train_GL", "--num_branches 1", "--num_branches: must be at least 2, not 1"),
    ("train_DML", "--num_branches 1001", "must be at most 1000, not 1001"),
    ("train", "--batch_size 1438 --dataset DIGITS", "1437 training images"),
    ("train", "--schedule 225 150", "must increase, not 225 150"),
    ("train", "--lr 0", "more than 0"),
    ("train_one", "--bpscale", "add --avg"),
    ("train_one", "--ind --avg", "--ind"),
    ("train_one", "--MulStu", "ONE's gate needs a shared trunk"),
    ("train_one", "--MulStu --avg --bpscale", "share no trunk"),
    ("train_GL", "--temperature 1e200", "at most 1e"),
    ("train", "--seed 99999999999999999999", "at most"),
    ("train_one", "--batch_size 1", "at least 2 images in each process"),
    ("train_GL", "--T_model_path somewhere", "Add --T_model"),
    ("train", "--device meta --dataset DIGITS", "meta.*--device cpu"),
    ("train", "--resume auto --overwrite", "not both"),
    ("train", "--dropout 0.5", "--dropout is for vgg16"),
    ("train_DML", "--models resnet8 resnet14 --dropout 0.5", "resnet8 and resnet14 do not have it"),
    ("train_DML", "--models resnet8 vgg16 --dataset imagenet", "--models: vgg16 is made for"),
    ("train", "--model vgg16 --dropout 1", "less than 1"),
    ("train", "--model vgg16 --dataset imagenet", "made for images of 32x32"),
    ("train_kd", "--T_model vgg16 --dataset imagenet", "--T_model: vgg16 is made for images of 32x32"),
    ("train_GL", "--gpu_id 0,1", "one number, not 0,1: .* torchrun --standalone --nproc_per_node=2 .* without"),
    ("train", "--decoder fast --dataset DIGITS", "fast is for the large images of .*, not for DIGITS"),
    ("train_GL", "--aggregation others --num_branches 2", "others needs two peers.*--no_leader"),
    ("train", "--train_size 9 --dataset DIGITS", "--train_size must lie between the 10 classes and the 1437 .*not 9"),
    ("train_GL", "--T_model resnet8 --dataset DIGITS", "no checkpoint at DIGITS/resnet8"),
    ("train_kd", "--dataset DIGITS", "no checkpoint at DIGITS/resnet110"),
    ("train", "--version a/b", "not a path"),
    ("train", "--resume nowhere --dataset DIGITS", "no checkpoint at nowhere"),
    *((script, "--models resnet8 resnet14", "unrecognized arguments: --models resnet8 resnet14")
      for script in ("train", "train_kd", "train_GL", "train_FFL", "train_PCL", "train_OKDPH")),
    ("train_one", "--models resnet8 resnet14 --ind", "--models: branches share the trunk of one network"),
    ("train_one", "--models resnet8 resnet14", "use --model, or add --MulStu to --ind or"),
    ("train_one", "--models resnet8 resnet14 --MulStu", "add --ind or --avg"),
    ("train_one", "--models resnet8 vgg16 --MulStu --ind --model vgg16", "leave out --model "),
    ("train_DML", "--models resnet8", "different networks"),
    ("train_DML", "--models resnet8 resnet8", "different networks"),
    ("train_DML", "--models resnet8 resnet14 --num_branches 3", "leave out --num_branches"),
    ("train_DML", "--models resnet8 resnet14 --num_b 5", "unrecognized arguments: --num_b 5"),
    ("train", "--version a\nb", r"--version: a name without line breaks .*'a\\nb'"),
    ("train", "--version a\udcffb", "line breaks"),
]


@pytest.mark.parametrize(("name", "flags", "said"), REFUSED)
def test_a_mistake_is_one_line(name, flags, said, tmp_path, monkeypatch, capsys):
    """Exit code 2, one line that names the thing, and no file or folder left behind."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        utils.command(lambda: importlib.import_module(name).main(flags.split(" ")))
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and re.search(said, err) and len(err) < 400
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "flags", "warned"), [
    ("train", "--model resnet18 --dataset folder", ["--model resnet18"]),
    ("train_GL", "--model resnet50 --dataset CIFAR100", ["--model resnet50"]),
    ("train_kd", "--model resnet8 --T_model resnet34 --dataset DIGITS", ["--T_model resnet34"]),
    ("train_DML", "--models resnet34 resnet8 resnet18", ["--models resnet34", "--models resnet18"]),
    ("train", "--model resnet18 --dataset folder --image_size 48", ["--model resnet18"]),
    ("train_kd", "--model resnet18 --T_model resnet34 --dataset imagenet", []),
    ("train_GL", "--dataset folder", [])])
def test_networks_for_large_images_warn_about_small_ones(name, flags, warned, capsys):
    Run(importlib.import_module(name).parse_args([*flags.split(), "--device", "cpu"]), "baseline")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(warned)
    for line, flag in zip(lines, warned, strict=True):
        size, last = ("48x48", "2x2") if "48" in flags else ("32x32", "1x1")
        assert re.fullmatch(f"warning: the images of .* are {size}, and {flag} is made for 224x224: its last feature "
                            f"map is {last} .*", line)


def shell(line, cwd, **environment):
    """Run a line of shell code, in which $python and $root stand for themselves."""
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=cwd, timeout=120,
                          env=os.environ | {"python": sys.executable, "root": str(ROOT)} | environment)


def test_names_that_standard_output_cannot_encode():
    done = shell("$python -c 'import utils; utils.write_result(chr(0xdce9))'", ROOT, PYTHONIOENCODING="utf-8:strict")
    assert done.returncode == 0 and done.stdout == r"\udce9"


def test_python_without_docstrings(tmp_path):
    """PYTHONOPTIMIZE=2: no script needs its own docstring. report.py is the quickest; all use this parser."""
    done = shell("$python $root/report.py --help", tmp_path, PYTHONOPTIMIZE="2", PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0 and done.stdout.startswith("usage: ") and done.stderr == ""


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_is_read(name):
    """By the script, or by the code that all share."""
    shared = [*(ROOT / "training").glob("*.py"), ROOT / "utils.py", ROOT / "runtime" / "device.py"]
    code = "".join(path.read_text() for path in (ROOT / f"{name}.py", *shared))
    flags = vars(importlib.import_module(name).parse_args([]))
    assert [flag for flag in flags if not re.search(rf"args\.{flag}\b|getattr\(args, \"{flag}\"", code)] == []


@pytest.mark.parametrize("script", [*SCRIPTS, "evaluate", "report"])
def test_help_waits_for_no_imports(script):
    done = subprocess.run([sys.executable, "-X", "importtime", ROOT / f"{script}.py", "--help"], capture_output=True,
                          text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {script}.py ")
    assert "utils" in imported and not {"torch", "numpy", "PIL", "pandas", "models"} & imported
    assert "default: None" not in done.stdout and "\nMeasured" not in done.stdout
    if script in SCRIPTS:
        for default in ("300)", "0.0005, ", "V0)", "0.1, ", "0)"):
            assert f"(default: {default}" in " ".join(done.stdout.split())


def test_help_is_short(monkeypatch, capsys):
    """On a terminal of 80 columns. An example comes first, then the flags that everybody needs."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        importlib.import_module("train").parse_args(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 80
    assert lines[4] == "    python train.py --model resnet32 --dataset CIFAR10" and lines[6] == "main flags:"
    first = re.findall(r"^  (--\w+)", "\n".join(lines), re.MULTILINE)[:6]
    assert first == ["--model", "--dataset", "--data_dir", "--num_epochs", "--seed", "--resume"]


@pytest.mark.parametrize(("script", "names"), [
    ("train", models.NETWORKS), ("evaluate", models.NETWORKS), ("train", data_loader.DATASETS),
    ("evaluate", data_loader.DATASETS), ("train", data_loader.DECODERS), ("train_GL", models.AGGREGATIONS),
    ("train_KDCL", models.TARGETS), ("train_GL", losses.DISTILLATION), ("evaluate", FORMATS)])
def test_help_names_what_there_is(script, names, capsys):
    """It cannot read the tables: they need PyTorch."""
    with pytest.raises(SystemExit):
        importlib.import_module(script).parse_args(["--help"])
    said = re.sub(r"\(.*?\)", "", " ".join(capsys.readouterr().out.split()))  # without remarks and defaults
    said = re.sub(r"\b([a-z]+)(\d\w*(?:/\d\w*)+)", lambda family: ", ".join(  # resnet8/14 -> resnet8, resnet14
        family[1] + size for size in family[2].split("/")), said)
    assert ",".join(names) in said.replace(" ", "")


def denied():
    raise PermissionError(13, "Permission denied", "runs/train.log")


def raised(message):
    raise RuntimeError(message)


@pytest.mark.parametrize(("main", "said"), [
    (lambda: torch.zeros(2**50), r"there is not enough memory \(.*: try a smaller --batch_size .*"),
    (lambda: np.zeros(2**57), r"there is not enough memory \(.*--cache off"),
    *((lambda message=message: raised(message), r"a process that reads images has ended \(.*: try fewer --num_wor.*")
      for message in ("DataLoader worker (pid 7) is killed by signal: Bus error.",
                      "Caught RuntimeError in DataLoader worker process 0.\nunable to allocate shared memory(shm)")),
    (lambda: torch.nn.functional.batch_norm(torch.ones(1, 2, 1, 1), None, None, training=True),
     "BatchNorm needs more than one image in each process, .* larger --batch_size"),
    (denied, r"\[Errno 13\] Permission denied: 'runs/train.log'")])
def test_what_the_machine_refuses_is_one_line(main, said, capsys):
    with pytest.raises(SystemExit) as end:
        utils.command(main)
    assert end.value.code == 2 and re.fullmatch(f"error: {said}\n", capsys.readouterr().err)


# --- random command lines


VALUES = ["", "0", "1", "2", "3", "8", "10", "0.1", "0.5", "-1", "-0.5", "1e-30", "1e400", "nan", "inf", " 1", "0x1",
          "9" * 30, "two", "auto", "on", "off", "CE", "cpu", "meta", "resnet8", "resnet14", "vgg16", "DIGITS", "folder",
          "imagenet", "random", "nowhere", ".", "..", "a/b", "x" * 300, "a\nb", "ä ö", "-", "--"]


class Accepted(Exception):
    """A training that would begin now."""


def begin(*_):
    raise Accepted


def random_line(parse_args, rng):
    """Up to five flags with random values, after those of a quick training."""
    words = ["--dataset", "DIGITS", "--model", "resnet8", "--batch_size", "8"]
    known = vars(parse_args([]))
    for name in rng.choices(list(known), k=rng.randint(0, 5)):
        flag = f"--{name}"[:rng.randint(3, 30)] if rng.random() < 0.05 else f"--{name}"  # cut short: refused
        count = 0 if known[name] is False else rng.choice([1, 1, 1, 1, 2, 0])
        words += [flag, *rng.choices(VALUES, k=count)]
    return words


@pytest.mark.slow
def test_random_command_lines_are_accepted_or_refused(tmp_path, monkeypatch, capsys):
    """A training would begin, or exit code 2 and one line say why not. Neither leaves a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "fit", begin)
    counts = Counter()
    with few_digits():
        for i in range(300):
            rng = random.Random(i)
            module = importlib.import_module(rng.choice(SCRIPTS))
            words = random_line(module.parse_args, rng)
            capsys.readouterr()
            with pytest.raises((Accepted, SystemExit)) as end:
                utils.command(lambda module=module, words=words: module.main(words))
            refusal = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
            said = f"line {i}: {module.__name__}.py {words}: {end.value!r} {refusal}"
            counts[end.type] += 1
            assert not list(tmp_path.iterdir()), said
            if end.type is SystemExit:
                assert end.value.code == 2 and len(refusal) == 1 and refusal[0].startswith("error: "), said
    assert min(counts[Accepted], counts[SystemExit]) > 20
