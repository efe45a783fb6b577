"""The command evaluate.py: its metrics, its flags, its errors."""

import json
import math
import re

import numpy as np
import pytest
import torch
from conftest import METHODS
from image_data import imagenet_files, make_imagenet
from PIL import Image

import data_loader
import evaluate
import models
import train
import utils
from deployment import speed
from runtime.checkpoints import serialise


@pytest.fixture
def evaluated(capsys):
    """evaluated(flags...) -> the JSON that evaluate.py prints."""
    def start(*flags):
        capsys.readouterr()
        evaluate.main([*map(str, flags), "--json", "--device", "cpu"])
        return json.loads(capsys.readouterr().out)

    return start


def checkpoint(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("method", METHODS)
def test_metrics_are_those_of_the_run(method, runs, evaluated):
    folder = runs / method / "resnet8"
    best = json.loads((folder / "test_best_metrics.json").read_text())
    result = evaluated(folder)
    own = {name: value for name, value in best.items()
           if "test_" in name or name in ("dist", "attention", "attention_self")}
    assert own.items() <= result["figures"].items() and len(own) >= 3
    further = result["figures"].keys() - own.keys()
    assert further == {f"{output}test_{name}" for output in result["rows"] for name in ("ece", "accPerClass")}
    assert result["epoch"] == best["epoch"] and result["method"] == (method or "baseline")
    assert result["images"] == 60 and result["classes"] == [str(i) for i in range(10)]


def test_table(runs, capsys):
    folder = runs / "OKDDip" / "resnet8"
    evaluate.main([str(folder), "--device", "cpu"])
    text, best = capsys.readouterr().out, json.loads((folder / "test_best_metrics.json").read_text())
    (leader,) = re.findall(r"^leader +([\d.]+) +([\d.]+) +([\d.]+) +[\d.]+$", text, re.MULTILINE)
    assert leader == (f"{best['stu_test_accTop1']:.2f}", f"{best['stu_test_accTop5']:.2f}",
                      f"{best['stu_test_loss']:.4f}")
    weights = re.findall(r"^peer \d +([\d.]+) +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    assert [[float(w) for w in row] for row in weights] == pytest.approx(np.array(best["attention"]), abs=1e-4)
    assert f"{best['dist']:.4f}" in text and "78,042" in text and re.search(r"^7 +[\d.]+ +[\d.]+$", text, re.MULTILINE)


@pytest.mark.parametrize(("workers", "dataset"), [(0, "imagenet"), (2, "folder")])
def test_data_of_an_exported_file_by_its_size(workers, dataset, image_folder, evaluated, tmp_path, monkeypatch):
    """--data_dir alone: images of 224x224 are prepared like ImageNet, those of 32x32 like a folder."""
    monkeypatch.setattr(speed, "timed", lambda *_: 1)
    name, large = ("resnet18", True) if dataset == "imagenet" else ("resnet8", False)
    network, root = models.create_model(name, 2).eval(), image_folder(train=0, test=3)
    (root / "test").rename(root / "val")
    torch.save({"state_dict": network.state_dict(), "model": name, "classes": ["blue", "red"], "mean": (0.5,) * 3,
                "std": (0.2,) * 3}, tmp_path / "network.pth")
    result = evaluated(tmp_path / "network.pth", "--data_dir", root, "--batch_size", "4", "--num_workers", workers)
    files = sorted((root / "val").rglob("*.*"))
    pixels = torch.stack([data_loader.load_image(str(file), large) for file in files])
    x = data_loader.Normalise((0.5,) * 3, (0.2,) * 3, torch.device("cpu"))(pixels)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(network(x), torch.tensor([0, 0, 0, 1, 1, 1]))
    assert result["dataset"] == dataset and result["figures"]["test_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_the_decoder_is_that_of_the_run(evaluated, tmp_path, monkeypatch):
    """Or of --decoder. The images are noise, which the two resize differently."""
    monkeypatch.setattr(speed, "timed", lambda *_: 1)
    rng = np.random.default_rng(0)
    for file in imagenet_files(make_imagenet(tmp_path, 2, 2), "val"):
        Image.fromarray(rng.integers(0, 256, (300, 290, 3), dtype=np.uint8)).save(file)
    train.main(["--model", "resnet8", "--dataset", "imagenet", "--data_dir", str(tmp_path), "--save_dir", str(tmp_path),
                "--num_epochs", "1", "--batch_size", "4", "--num_workers", "0", "--device", "cpu", "--decoder", "fast"])
    run = tmp_path / "imagenet" / "resnet8"
    measured = json.loads((run / "summary.json").read_text())["last"]["test_loss"]
    fast, pil = (evaluated(run, *more)["figures"]["test_loss"] for more in ([], ["--decoder", "pil"]))
    assert fast == measured and pil != fast and pil == pytest.approx(fast, rel=1e-2)
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([str(run), "--images", "a.png", "--decoder", "fast"])


def test_images(runs, evaluated, tmp_path, capsys):
    """--images, --top, --branch and --batch_size, as JSON and as text."""
    file, more = tmp_path / "digit.png", tmp_path / "more.png"
    for i, path in enumerate((file, more)):
        Image.fromarray(data_loader.digits("").test.images[i]).save(path)
    run = runs / "OKDDip" / "resnet8"
    result = evaluated(run, "--images", file, more, "--branch", "1", "--top", "3", "--batch_size", "1")
    assert result["network"] == "peer 1" and [image["file"] for image in result["images"]] == [str(file), str(more)]
    assert all(len(image["top"]) == 3 for image in result["images"])
    evaluate.main([str(runs / "ONE" / "resnet8"), "--images", str(file), "--top", "3", "--device", "cpu"])
    header, _, name, *tops = capsys.readouterr().out.splitlines()
    assert header.endswith(", ensemble") and name == str(file)
    assert len(tops) == 3 and all(re.fullmatch(r" +\d+\.\d\d %  \d", top) for top in tops)


@pytest.fixture
def digit_files(tmp_path):
    """Digits as files in a folder, in folders below it and in hidden ones, beside files that are no images."""
    images = data_loader.digits("").test.images
    for i, name in enumerate(["b.png", "a/2.PNG", "a/1.jpg", ".hidden.png", ".cache/x.png", "a/.cache/x.png"]):
        (tmp_path / "digits" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).save(tmp_path / "digits" / name)
    (tmp_path / "digits" / "Thumbs.db").write_text("no image")
    (tmp_path / "digits" / "a" / "labels.csv").write_text("no image")
    return tmp_path / "digits"


def test_images_of_a_folder(runs, digit_files, capsys):
    flags = ["--json", "--device", "cpu", "--images"]
    names = [str(digit_files / name) for name in ("a/1.jpg", "a/2.PNG", "b.png")]
    evaluate.main([str(runs / "resnet8"), *flags, *names])
    one_by_one = json.loads(capsys.readouterr().out)
    evaluate.main([str(runs / "resnet8"), *flags, str(digit_files)])
    printed = capsys.readouterr()
    assert json.loads(printed.out) == one_by_one and [image["file"] for image in one_by_one["images"]] == names
    assert re.fullmatch(r"warning: 2 files that are no images by their names are left out, .*\n", printed.err)


@pytest.mark.parametrize("batch_size", ["2", "128"])
def test_good_images_are_classified_beside_damaged_ones(runs, digit_files, script, batch_size):
    """As a process: the answers on standard output, the damaged files on standard error, exit code 2."""
    damaged = [digit_files / f"{i}.png" for i in range(11)]
    for file in damaged:
        file.write_text("no image")
    (digit_files / "a" / "lost.png").symlink_to("nowhere.png")
    names = [digit_files / "b.png", "no.png", digit_files / "a", digit_files, digit_files / "a" / ".cache" / "x.png"]
    done = script("evaluate.py", runs / "resnet8", "--json", "--device", "cpu", "--batch_size", batch_size, "--images",
                  *names)
    result, (warning, error) = json.loads(done.stdout), done.stderr.splitlines()
    expected = ["b.png", "a/1.jpg", "a/2.PNG", "a/1.jpg", "a/2.PNG", "b.png", "a/.cache/x.png"]
    assert [image["file"] for image in result["images"]] == [str(digit_files / name) for name in expected]
    assert all(len(image["top"]) == 5 for image in result["images"]) and len(result["unreadable"]) == 14
    lost = f"{digit_files}/a/lost.png is a link to {digit_files}/a/nowhere.png, which does not exist"
    assert done.returncode == 2 and warning.startswith("warning: 3 files")
    first = f"no.png does not exist; {lost}; {damaged[0]} does not decode as an image: "
    assert error.startswith(f"error: 14 image files or folders cannot be used: {first}")
    assert error.endswith("; 4 more") and "Traceback" not in done.stderr


# --- checkpoints under the authors' parameter names


def in_branch(i, rest):
    return rest.replace("layer3.", f"layer3_{i}.", 1).replace("fc.", f"classifier3_{i}.", 1)


def authors_name(key, network_based):
    for ours, theirs in (("aggregation.W_L", "query_weight"), ("aggregation.W_E", "key_weight"),
                         ("gate.linear", "control_v1"), ("gate.norm", "bn_v1")):
        key = key.replace(ours, theirs)
    found = re.fullmatch(r"(trunks|heads)\.(\d)\.(.*)", key)
    if found is None:
        return re.sub(r"^(trunk|head)\.", "", key)
    part, i, rest = found.groups()
    return f"stu{i}.{rest}" if network_based else rest if part == "trunks" else in_branch(i, rest)


@pytest.mark.parametrize(("method", "prefix", "more"), [
    ("", "module.", []), ("OKDDip", "", []), ("OKDDip", "module.", []), ("OKDDip-N", "module.", []), ("ONE", "", []),
    ("Ind", "module.", []), ("CL-ILR", "", ["--method", "CL"])])
def test_checkpoints_of_the_authors_code(method, prefix, more, runs, evaluated, tmp_path):
    ours = checkpoint(runs / method / "resnet8" / "best.pth")["state_dict"]
    theirs = {prefix + authors_name(key, method.endswith("-N")): value for key, value in ours.items()}
    torch.save({"state_dict": theirs, "epoch": 300}, tmp_path / "theirs.pth.tar")
    flags = ["--model", "resnet8", "--dataset", "DIGITS", "--batch_size", "32", *more]
    result = evaluated(tmp_path / "theirs.pth.tar", *flags)
    own = evaluated(runs / method / "resnet8")
    assert result["figures"] == own["figures"] and result["rows"] == own["rows"]
    assert result["speed"]["deployed"]["parameters"] == own["speed"]["deployed"]["parameters"]
    assert result["method"] == {"": "baseline", "OKDDip-N": "OKDDip", "CL-ILR": "CL"}.get(method, method)


# --- errors: one line, exit code 2


def refused(capsys, flags):
    """-> the error that the command prints, run as a script runs it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        utils.command(lambda: evaluate.main([*map(str, flags), "--device", "cpu"]))
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == ""
    assert re.fullmatch(r"error: .+\n", printed.err)
    return printed.err


def make_files(kind, runs, group, file):
    """Make the files that a wrong command line needs."""
    tmp_path = file.parent
    if kind == "damaged":
        content = bytearray((group / "best.pth").read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    elif kind == "not an image":
        (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    elif kind == "empty folder":
        (tmp_path / "empty" / ".cache").mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "empty" / ".cache" / "x.png")
        (tmp_path / "empty" / "x.txt").write_text("no image")
    elif kind == "other network":
        torch.save(models.create_model("resnet14", 10).state_dict(), file)
    elif kind == "there already":
        (tmp_path / "there.onnx").write_text("mine")
    elif kind.startswith("exported with"):
        content = {"state_dict": models.create_model("resnet8", 2).state_dict(), "model": "resnet8",
                   "classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.25] * 3}
        content |= {"exported with one mean": {"mean": [0.5]}, "exported with std 0": {"std": [0.0, 1.0, 1.0]},
                    "exported with a size": {"size": "big"}, "exported with NaN": {}}[kind]
        content["state_dict"]["head.fc.bias"] += math.nan if "NaN" in kind else 0
        torch.save(content, file)
        Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    elif kind in ("unknown method", "unknown data"):
        content = checkpoint(group / "best.pth")
        del content["digest"]
        content["flags"] |= {"method": "Mean"} if kind == "unknown method" else {"dataset": "SVHN"}
        file.write_bytes(serialise(content))
    elif kind == "bare group":
        torch.save(models.ONE("resnet8", 10, 4).state_dict(), file)
    elif kind == "bare PCL":
        torch.save(models.PCL("resnet8", 10, 3).state_dict(), file)
    elif kind == "not the authors'":
        weights = models.create_model("resnet8", 10).state_dict()
        torch.save({key.partition(".")[2]: value for key, value in weights.items()}, file)
    elif kind == "float image":
        Image.fromarray(np.random.default_rng(0).random((32, 32), dtype=np.float32)).save(tmp_path / "float.tiff")
    elif kind == "exported":
        evaluate.main([str(runs / "resnet8"), "--export", str(file)])


def wrong(kind, runs, tmp_path):
    """-> a command line with a mistake in it."""
    group, file = runs / "ONE" / "resnet8", tmp_path / "file.pth"
    make_files(kind, runs, group, file)
    return {
        "missing": [tmp_path / "nothing"],
        "folder without a run": [tmp_path],
        "damaged": [file],
        "unknown ending": [group, "--branch", "0", "--export", tmp_path / "x.tflite"],
        "no such folder": [group, "--branch", "0", "--export", tmp_path / "no" / "x.onnx"],
        "there already": [group, "--branch", "0", "--export", tmp_path / "there.onnx"],
        "branch out of range": [group, "--branch", "4", "--export", tmp_path / "x.onnx"],
        "branch of one network": [runs / "resnet8", "--branch", "0"],
        "no leader": [group, "--export", tmp_path / "x.onnx"],
        "not an image": [group, "--images", tmp_path / "broken.png"],
        "no image": [group, "--images", tmp_path / "none.png"],
        "empty folder": [group, "--images", tmp_path / "empty"],
        "other network": [file, "--model", "resnet8"],
        "the run itself": [group, "--branch", "0", "--export", group / "best.pth", "--overwrite"],
        "exported with one mean": [file, "--images", tmp_path / "black.png"],
        "exported with std 0": [file, "--images", tmp_path / "black.png"],
        "exported with a size": [file, "--images", tmp_path / "black.png"],
        "exported with NaN": [file, "--images", tmp_path / "black.png"],
        "unknown method": [file],
        "unknown data": [file],
        "bare group": [file, "--model", "resnet8"],
        "bare PCL": [file, "--model", "resnet8"],
        "not the authors'": [file, "--model", "resnet8", "--method", "PCL"],
        "float image": [group, "--images", tmp_path / "float.tiff"],
        "says what it is": [group, "--model", "resnet14"],
        "other data": [group, "--dataset", "imagenet"],
        "no such network": [group, "--model", "resnet33"],
        "no such data": [group, "--dataset", "SVHN"],
        "exported": [file],
        "two things": [group, "--export", "x.onnx", "--images", "y.png"],
    }[kind]


@pytest.mark.parametrize(("kind", "message"), [
    ("the run itself", "belongs to a run"), ("exported with one mean", "mean.*are not three numbers"),
    ("exported with std 0", "std above 0"), ("exported with a size", "images of size 'big'"),
    ("exported with NaN", "not a number"), ("unknown method", "unknown method 'Mean'.*METHODS"),
    ("unknown data", "unknown data set.*SVHN"),
    ("bare group", "bare weights of a group"), ("bare PCL", "bare weights of a group"),
    ("not the authors'", "under the authors' names .*the authors' code has no weights like 'peers"),
    ("float image", "floating-point"),
    ("missing", "there is no checkpoint at .*nothing"), ("folder without a run", "no checkpoint at .*best.pth"),
    ("damaged", "file.pth is damaged|file.pth is not a checkpoint"), ("unknown ending", r"x.tflite .*\.safetensors"),
    ("no such folder", "no is not a folder"), ("there already", "there.onnx is there already.*--overwrite"),
    ("branch out of range", "branches 0 to 3, not 4"), ("branch of one network", "holds one network"),
    ("no leader", "group without a leader.*--branch"), ("not an image", "broken.png does not decode"),
    ("no image", "none.png does not exist"), ("empty folder", "empty holds no image"),
    ("other network", "not hold the weights of a resnet8.*--model"),
    ("says what it is", "its model is resnet8: leave out --model resnet14"), ("other data", "images of 32x32"),
    ("no such network", "--model: unknown name 'resnet33'; known are resnet8, "),
    ("no such data", "--dataset: unknown name 'SVHN'; known are CIFAR10, "),
    ("exported", "name it with --data_dir"), ("two things", "--images: not allowed with")])
def test_errors(kind, message, runs, tmp_path, capsys):
    flags = wrong(kind, runs, tmp_path)
    error = refused(capsys, flags)
    assert re.search(message, error), error
    assert not list(tmp_path.glob("x.*")) and not list(tmp_path.glob(".*"))
    if kind == "there already":
        assert (tmp_path / "there.onnx").read_text() == "mine"


def test_an_error_of_the_command_as_a_process(script, tmp_path):
    done = script("evaluate.py", tmp_path)
    assert done.returncode == 2 and re.fullmatch(r"error: there is no checkpoint at .*\n", done.stderr)


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        evaluate.main(["--help"])
    assert end.value.code == 0 and "python evaluate.py leader.onnx --images a.png b.jpg" in capsys.readouterr().out


def test_a_list_of_gpus_is_refused(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["run", "--gpu_id", "0,1"])
    assert "--gpu_id: one number, not 0,1: a training uses several GPUs if torchrun" in capsys.readouterr().err
