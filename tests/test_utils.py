import ast
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from errors import UserError

import train
import train_DML
import train_GL
import train_kd
import train_one
import utils

MAIN = {"train": train, "train_kd": train_kd, "train_GL": train_GL, "train_one": train_one, "train_DML": train_DML}

REFUSED = [
    ("train", "--model resnet33", "resnet33"),
    ("train", "--dataset SVHN", "SVHN"),
    ("train_GL", "--loss MSE", "MSE"),
    ("train_kd", "--T_model resnet33", "resnet33"),
    ("train_GL", "--num_branches 1", "at least 2 students, not 1"),
    ("train_one", "--num_branches 0", "at least 2 students, not 0"),
    ("train_DML", "--num_branches -3", "at least 2 students"),
    ("train_DML", "--type triples", "triples"),
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
    ("train", "--model vgg16 --dropout 1", "less than 1"),
    ("train", "--model vgg16 --dataset imagenet", "made for images of 32x32"),
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
    import re

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        utils.command(lambda: MAIN[name].main(flags.split()))
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and re.search(said, err)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_one_line_for_a_real_process(script, tmp_path):
    done = script("train_GL.py", "--num_branches", 1)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", MAIN)
def test_original_flags_and_defaults(name):
    parsed = {"train": lambda argv: utils.parse(utils.Parser(train.__doc__), argv)}.get(
        name, getattr(MAIN[name], "parse_args", None))([])
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


def test_every_flag_is_read():
    """As args.<flag> somewhere, in the method's script or in what all of them share."""
    shared = "".join((ROOT / f"{name}.py").read_text() for name in ("utils", "run", "engine"))
    for name in MAIN:
        text = shared + (ROOT / f"{name}.py").read_text()
        argv = MAIN[name].parse_args([]) if name != "train" else utils.parse(utils.Parser(""), [])
        assert [flag for flag in vars(argv) if not re.search(rf"\bargs\.{flag}\b", text)] == []


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


def test_no_file_is_trusted():
    """Checkpoints are read as tensors and plain values alone; nothing is evaluated, unpickled or given to a shell."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("models/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert name not in ("eval", "exec", "os.system", "os.popen") and "pickle" not in name, path
            assert name != "torch.load" or keywords.get("weights_only") == "True", path
            assert "shell" not in keywords, path


def arguments(tmp_path, *flags):
    return utils.parse(utils.Parser("a description"), ["--save_dir", str(tmp_path), *flags])


def test_run_folder(tmp_path):
    assert utils.run_folder(arguments(tmp_path)) == tmp_path / "CIFAR10" / "resnet32"
    assert utils.run_folder(arguments(tmp_path, "--version", "V1")) == tmp_path / "CIFAR10" / "resnet32_V1"
    assert utils.run_folder(arguments(tmp_path), "OKDDip") == tmp_path / "CIFAR10" / "OKDDip" / "resnet32"
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_in_the_way(tmp_path):
    (tmp_path / "CIFAR10").write_text("")
    with pytest.raises(UserError, match="CIFAR10 is a file where"):
        utils.run_folder(arguments(tmp_path))


def test_a_file_that_cannot_be_written_is_one_line(capsys):
    def main():
        raise PermissionError(13, "Permission denied", "runs/train.log")

    with pytest.raises(SystemExit) as end:
        utils.command(main)
    assert end.value.code == 2 and capsys.readouterr().err == "error: [Errno 13] Permission denied: 'runs/train.log'\n"


def test_a_run_is_not_overwritten(tmp_path):
    folder = tmp_path / "CIFAR10" / "resnet32"
    folder.mkdir(parents=True)
    assert utils.run_folder(arguments(tmp_path)) == folder  # an empty folder is no run
    (folder / "parameters.json").write_text("{}")
    with pytest.raises(UserError, match="--resume.*--version.*--overwrite"):
        utils.run_folder(arguments(tmp_path))
    assert utils.run_folder(arguments(tmp_path, "--overwrite")) == folder


def test_revision_is_unknown_outside_a_clone(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "HERE", tmp_path)
    assert utils.git_revision() == "unknown"
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(utils, "HERE", tmp_path / "copy")  # a copy inside somebody else's repository
    assert utils.git_revision() == "unknown"


def test_revision_says_whether_files_were_changed(tmp_path, monkeypatch):
    def git(*words):
        return subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True,
                              capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "models").mkdir()
    code, record = tmp_path / "models" / "a.py", tmp_path / "metrics.jsonl"
    code.write_text("a")
    git("add", ".")
    git("commit", "-qm", "a")
    monkeypatch.setattr(utils, "HERE", tmp_path)
    record.write_text("a run's record is no change of the code")
    assert utils.git_revision() == git("rev-parse", "HEAD")
    code.write_text("b")
    assert utils.git_revision() == git("rev-parse", "HEAD") + "+changes"


def test_device(tmp_path):
    assert utils.pick_device(arguments(tmp_path, "--device", "cpu")) == torch.device("cpu")
    expected = "cuda:0" if torch.cuda.is_available() else "cpu"
    assert utils.pick_device(arguments(tmp_path)) == torch.device(expected)
