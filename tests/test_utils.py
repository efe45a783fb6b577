import argparse
import importlib
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, few_digits

import data_loader
import losses
import methods
import models
import train
import train_DML
import train_GL
import train_kd
import train_one
import utils
from deployment.formats import FORMATS
from training.run import Run

MAIN = {"train": train, "train_kd": train_kd, "train_GL": train_GL, "train_one": train_one, "train_DML": train_DML}

REFUSED = [
    ("train", "--model resnet33", "unknown network 'resnet33'; known are resnet8, "),
    ("train_DML", "--models resnet8 resnet9", "unknown network 'resnet9'"),
    ("train", "--dataset SVHN", "unknown dataset 'SVHN'; known are CIFAR10, "),
    ("train_GL", "--loss MSE", "MSE"),
    ("train_kd", "--T_model resnet33", "unknown network 'resnet33'; known are resnet8, "),
    ("train_GL", "--num_branches 1", "at least 2 students, not 1"),
    ("train_one", "--num_branches 0", "at least 2 students, not 0"),
    ("train_DML", "--num_branches -3", "at least 2 students"),
    ("train_DML", "--type triples", "triples"),
    ("train_DML", "--num_branches 1001", "at most 1000 students, not 1001"),
    ("train", "--num_epochs 2147483648", "at most 2147483647"),
    ("train", "--batch_size 0", "at least 1, not 0"),
    ("train", "--batch_size -8", "at least 1, not -8"),
    ("train", "--batch_size many", "many"),
    ("train", "--batch_size 1438 --dataset DIGITS", "1437 training images"),
    ("train", "--schedule 225 150", "must increase, not 225 150"),
    ("train", "--schedule 150 150", "must increase"),
    ("train", "--schedule 0", "at least 1"),
    ("train", "--num_epochs 0", "at least 1"),
    ("train", "--lr 0", "more than 0"),
    ("train", "--lr nan", "nan"),
    ("train", "--wd -1", "at least 0"),
    ("train_GL", "--temperature 0", "more than 0"),
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
    ("train", "--efficient", "--efficient is for densenet"),
    ("train_DML", "--models resnet8 resnet14 --dropout 0.5", "resnet8 and resnet14 do not have it"),
    ("train_DML", "--models resnet8 vgg16 --dataset imagenet", "--models: vgg16 is made for"),
    ("train", "--model vgg16 --dropout 1", "less than 1"),
    ("train", "--model vgg16 --dataset imagenet", "made for images of 32x32"),
    ("train_kd", "--T_model vgg16 --dataset imagenet", "--T_model: vgg16 is made for images of 32x32"),
    ("train_GL", "--gpu_id 0,1", "one number, not 0,1: .* torchrun --standalone --nproc_per_node=2 .* without"),
    ("train_GL", "--gpu_id 0,1,2", "one number, not 0,1,2: .* torchrun --standalone --nproc_per_node=3 "),
    ("train_GL", "--gpu_id -1", "--gpu_id: must be at least 0, not -1"),
    ("train_GL", "--gpu_id gpu", "invalid int value: 'gpu'"),
    ("train", "--decoder fast --dataset DIGITS", "fast is for the large images of --dataset imagenet, not for DIGITS"),
    ("train", "--decoder cv2", "cv2"),
    ("train_GL", "--aggregation median", "median"),
    ("train_GL", "--aggregation others --num_branches 2", "others needs two peers.*--no_leader"),
    ("train", "--train_size 9 --dataset DIGITS", "--train_size must lie between the 10 classes and the 1437 .*not 9"),
    ("train", "--train_size 1438 --dataset DIGITS", "--train_size .*not 1438"),
    ("train", "--train_size -1", "at least 0"),
    ("train", "--train_size 1000 --val_size 438 --dataset DIGITS", "--val_size .* 437 training images that"),
    ("train_GL", "--T_model resnet8 --dataset DIGITS", "no checkpoint at DIGITS/resnet8"),
    ("train_kd", "--dataset DIGITS", "no checkpoint at DIGITS/resnet110"),
    ("train", "--val_size 5 --dataset DIGITS", "--val_size"),
    ("train", "--version a/b", "not a path"),
    ("train", "--device tpu9 --dataset DIGITS", "tpu9.*--device cpu"),
    ("train", "--dataset folder --data_dir nowhere", "nowhere/train does not exist"),
    ("train", "--resume nowhere --dataset DIGITS", "no checkpoint at nowhere"),
]


@pytest.mark.parametrize(("name", "flags", "said"), REFUSED)
def test_a_mistake_is_one_line(name, flags, said, tmp_path, monkeypatch, capsys):
    """Exit code 2, one line that names the thing, and no file or folder left behind."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        utils.command(lambda: MAIN[name].main(flags.split()))
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and re.search(said, err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "flags", "warned"), [
    ("train", "--model resnet18 --dataset folder", ["--model resnet18"]),
    ("train_GL", "--model resnet50 --dataset CIFAR100", ["--model resnet50"]),
    ("train_kd", "--model resnet8 --T_model resnet34 --dataset DIGITS", ["--T_model resnet34"]),
    ("train_DML", "--models resnet34 resnet8 resnet18", ["--models resnet34", "--models resnet18"]),
    ("train_kd", "--model resnet18 --T_model resnet34 --dataset imagenet", []),
    ("train_GL", "--dataset folder", [])])
def test_networks_for_large_images_warn_about_small_ones(name, flags, warned, capsys):
    Run(MAIN[name].parse_args([*flags.split(), "--device", "cpu"]))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(warned)
    for line, flag in zip(lines, warned, strict=True):
        assert re.fullmatch(f"warning: the images of .* are 32x32, and {flag} is made for 224x224: its last feature "
                            "map is 1x1 .*", line)


@pytest.mark.parametrize(("flags", "said"), [
    (["--version", "a\nb"], r"--version: a name without line breaks .*'a\\nb'"), (["--version", "a\rb"], "line breaks"),
    (["--version", "a\udcffb"], "line breaks"), (["--version", "a" * 300], "name too long .* shorter .*--version"),
    (["--save_dir", "a" * 300], "name too long .*--save_dir")])
def test_names_that_no_folder_or_script_can_have(flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        utils.command(lambda: train.main(["--dataset", "DIGITS", "--model", "resnet8", "--device", "cpu", *flags]))
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and re.search(said, err) and len(err) < 300
    assert list(tmp_path.iterdir()) == []


def shell(line, cwd, **environment):
    """Run a line of shell code, in which $python and $root stand for themselves."""
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=cwd, timeout=120,
                          env=os.environ | {"python": sys.executable, "root": str(ROOT)} | environment)


def test_a_training_without_standard_error(tmp_path):
    """2>&-. It trains, and no file of the run becomes file 2, which libraries write messages to."""
    code = "import os, utils, train; utils.command(train.main); os.write(2, b'a message')"
    done = shell(f'PYTHONPATH=$root $python -c "{code}" --model resnet8 --dataset DIGITS --batch_size 700 --device cpu '
                 "--num_epochs 1 --train_size 700 2>&-", tmp_path)
    assert done.returncode == 0 and "done: best epoch 1" in done.stdout
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 7 and not any(b"a message" in path.read_bytes() for path in files)


def test_a_mistake_without_standard_error(tmp_path):
    done = shell("$python $root/report.py nowhere 2>&-", tmp_path)
    assert done.returncode == 2 and done.stdout == done.stderr == ""


def test_python_without_docstrings(tmp_path):
    """PYTHONOPTIMIZE=2: no script needs its own docstring. report.py is the quickest; all use this parser."""
    done = shell("$python $root/report.py --help", tmp_path, PYTHONOPTIMIZE="2", PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0 and done.stdout.startswith("usage: ") and done.stderr == ""


def test_a_mistake_is_one_line_for_a_real_process(script, tmp_path):
    done = script("train_GL.py", "--num_branches", 1)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", MAIN)
def test_original_flags_and_defaults(name):
    parsed = MAIN[name].parse_args([])
    expected = {"model": "resnet32", "dataset": "CIFAR10", "num_epochs": 300, "batch_size": 128, "lr": 0.1, "wd": 5e-4,
                "dropout": 0, "efficient": False, "resume": None, "version": "V0", "num_workers": 8, "gpu_id": 0,
                "seed": 0, "data_dir": "./Data", "save_dir": ".", "schedule": None, "train_size": 0}
    if name != "train":
        expected |= {"loss": "KL", "temperature": 3.0}
    if name in ("train_GL", "train_one"):
        expected |= {"num_branches": 4, "alpha": 1.0, "start_consistency": 0, "length": 80, "MulStu": False}
    if name == "train_one":
        expected |= {"ind": False, "avg": False, "bpscale": False}
    if name == "train_kd":
        expected |= {"T_model": "resnet110", "alpha": 1.0}
    assert {key: getattr(parsed, key) for key in expected} == expected


TEACHER = "--T_model resnet8 --T_model_path DIGITS/resnet8"


@pytest.mark.parametrize(("name", "flags"), [("train", ""), ("train_kd", TEACHER), ("train_GL", TEACHER),
                                             ("train_one", ""), ("train_one", "--avg"), ("train_DML", "")])
def test_every_flag_is_read(name, flags, tmp_path, monkeypatch):
    """In a training of one epoch, its repetition with --overwrite, and its continuation."""
    monkeypatch.chdir(tmp_path)
    flags = f"--model resnet8 --dataset DIGITS --batch_size 64 --device cpu {flags}".split()
    read, parse_args = set(), utils.Parser.parse_args

    class Recorded(argparse.Namespace):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    def parse_and_record(self, argv):
        if "again" not in argv:  # the defaults of another method, to read the teacher's file
            return parse_args(self, argv)
        args = parse_args(self, argv, Recorded())
        read.clear()  # what argparse itself has read
        return args

    def train_again(*more):
        MAIN[name].main([*flags, "--version", "again", *more])
        return set(read)

    with few_digits():
        train.main([*flags[:8], "--num_epochs", "1"])  # the teacher
        monkeypatch.setattr(utils.Parser, "parse_args", parse_and_record)
        ever_read = (train_again("--num_epochs", "1") | train_again("--num_epochs", "1", "--overwrite")
                     | train_again("--num_epochs", "2", "--resume", "auto"))
    assert vars(MAIN[name].parse_args([])).keys() - ever_read == set()


@pytest.mark.parametrize("name", MAIN)
def test_help(name):
    done = subprocess.run([sys.executable, ROOT / f"{name}.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {name}.py [--flag VALUE ...]")
    groups = re.findall(r"^(\S.*):$", done.stdout, re.MULTILINE)
    assert groups[-4][:6] == "recipe" and groups[-1] == "run"
    assert name == "train" or groups[1:-4] and done.stdout.index("--loss") < done.stdout.index("--model NAME")
    for default in ("300", "0.0005", "V0", "0.1"):
        assert f"(default: {default})" in " ".join(done.stdout.split())
    assert "default: None" not in done.stdout and " = " in done.stdout and "Measured" not in done.stdout


@pytest.mark.parametrize("script", [*{entry.module: 0 for entry in methods.METHODS.values()}, "evaluate", "report"])
@pytest.mark.parametrize(("flag", "code"), [("--help", 0), ("--no_such_flag", 2)])
def test_help_and_wrong_flags_wait_for_no_imports(script, flag, code):
    done = subprocess.run([sys.executable, "-X", "importtime", ROOT / f"{script}.py", flag], capture_output=True,
                          text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == code and "utils" in imported
    assert not {"torch", "numpy", "PIL", "pandas", "models"} & imported


@pytest.mark.parametrize(("script", "names"), [
    ("train", models.NETWORKS), ("evaluate", models.NETWORKS), ("train", data_loader.DATASETS),
    ("evaluate", data_loader.DATASETS), ("train", data_loader.DECODERS), ("train_GL", models.AGGREGATIONS),
    ("train_KDCL", models.TARGETS), ("train_GL", losses.DISTILLATION), ("evaluate", FORMATS)])
def test_help_names_what_there_is(script, names, capsys):
    """It cannot read the tables: they need PyTorch."""
    with pytest.raises(SystemExit):
        importlib.import_module(script).parse_args(["--help"])
    assert ",".join(names) in "".join(capsys.readouterr().out.split())


def test_too_little_memory_is_one_line(capsys):
    """A real allocation that no machine can make."""
    with pytest.raises(SystemExit) as end:
        utils.command(lambda: torch.zeros(2**50))
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.startswith("error: there is not enough memory (") and err.count("\n") == 1
    assert err.endswith("try a smaller --batch_size\n")


def test_a_file_that_cannot_be_written_is_one_line(capsys):
    def main():
        raise PermissionError(13, "Permission denied", "runs/train.log")

    with pytest.raises(SystemExit) as end:
        utils.command(main)
    assert end.value.code == 2 and capsys.readouterr().err == "error: [Errno 13] Permission denied: 'runs/train.log'\n"


