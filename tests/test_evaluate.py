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
from deployment.reading import read
from runtime.checkpoints import serialise
from runtime.errors import UserError


def started(flags, capsys):
    """The command, run as a script runs it. -> exit code, standard output, standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        utils.command(lambda: evaluate.main([*map(str, flags), "--device", "cpu"]))
    return end.value.code, *capsys.readouterr()


@pytest.mark.parametrize("method", METHODS)
def test_metrics_are_those_of_the_run(method, runs, evaluated):
    folder = runs / method / "resnet8"
    best = json.loads((folder / "test_best_metrics.json").read_text())
    result = evaluated(folder)
    own = {name: value for name, value in best.items()
           if "test_" in name or name in ("dist", "attention", "attention_self")}
    assert own.items() <= result["metrics"].items() and len(own) >= 3
    further = result["metrics"].keys() - own.keys()
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


@pytest.mark.parametrize(("workers", "dataset", "classes"), [(0, "imagenet", ["blue", "red"]),
                                                             (2, "folder", ["0", "1"])])  # which fit any names
def test_data_of_an_exported_file_by_its_size(workers, dataset, classes, image_folder, evaluated, tmp_path):
    """--data_dir alone: images of 224x224 are prepared like ImageNet, those of 32x32 like a folder. It has val/ alone.

    The names of the classes must agree. Files of the authors' code have none: an exported one has numbers.
    """
    name, size = ("resnet18", 224) if dataset == "imagenet" else ("resnet8", 32)
    network, root = models.create_model(name, 2).eval(), image_folder(train=0, test=3)
    (root / "test").rename(root / "val")
    torch.save({"state_dict": network.state_dict(), "model": name, "classes": classes, "mean": (0.5,) * 3,
                "std": (0.2,) * 3}, tmp_path / "network.pth")
    result = evaluated(tmp_path / "network.pth", "--data_dir", root, "--batch_size", "4", "--num_workers", workers)
    files = sorted((root / "val").rglob("*.*"))
    pixels = torch.stack([data_loader.load_image(str(file), size) for file in files])
    x = data_loader.Normalise((0.5,) * 3, (0.2,) * 3, torch.device("cpu"))(pixels)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(network(x), torch.tensor([0, 0, 0, 1, 1, 1]))
    assert result["dataset"] == dataset and result["metrics"]["test_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert result["classes"] == ["blue", "red"]
    if classes == ["blue", "red"]:
        (root / "val" / "red").rename(root / "val" / "green")
        with pytest.raises(UserError, match="for other classes, red there, green here: name its own data"):
            evaluated(tmp_path / "network.pth", "--data_dir", root)


def test_the_decoder_is_that_of_the_run(evaluated, tmp_path):
    """Or of --decoder. The images are noise, which the two resize differently."""
    rng = np.random.default_rng(0)
    for file in imagenet_files(make_imagenet(tmp_path, 2, 2), "val"):
        Image.fromarray(rng.integers(0, 256, (300, 290, 3), dtype=np.uint8)).save(file)
    train.main(["--model", "resnet8", "--dataset", "imagenet", "--data_dir", str(tmp_path), "--save_dir", str(tmp_path),
                "--num_epochs", "1", "--batch_size", "4", "--num_workers", "0", "--device", "cpu", "--decoder", "fast"])
    run = tmp_path / "imagenet" / "resnet8"
    measured = json.loads((run / "summary.json").read_text())["last"]["test_loss"]
    fast, pil = (evaluated(run, *more)["metrics"]["test_loss"] for more in ([], ["--decoder", "pil"]))
    assert fast == measured and pil != fast and pil == pytest.approx(fast, rel=1e-2)
    assert read(run, dataset="folder").size == 224  # the network's, whatever is evaluated


def test_images(runs, evaluated, tmp_path, capsys):
    """--images, --top, --branch and --batch_size: a digit in PNG files of several kinds, and a large JPEG."""
    digits, run = data_loader.digits("").test.images, runs / "OKDDip" / "resnet8"
    grey = Image.fromarray(digits[3]).convert("L")
    kinds = {"rgb.png": grey.convert("RGB"), "grey.png": grey, "rgba.png": grey.convert("RGBA"),
             "palette.png": grey.convert("P"), "large.jpg": Image.fromarray(digits[5]).resize((700, 500))}
    for name, image in kinds.items():
        image.save(tmp_path / name)
    files, saved = [str(tmp_path / name) for name in kinds], read(run)
    x = data_loader.Normalise(saved.mean, saved.std, torch.device("cpu"))(torch.from_numpy(digits[3:4]))
    for flags, title, output in (([], "leader", "stu_"), (["--branch", "3", "--batch_size", "2"], "leader", "stu_"),
                                 (["--branch", "1", "--batch_size", "1"], "peer 1", "stu1")):
        result, p = evaluated(run, "--images", *files, "--top", "99", *flags), saved.logits(x, output).softmax(-1)[0]
        assert result["network"] == title and [image["file"] for image in result["images"]] == files
        *same, large = [{top["class"]: top["probability"] for top in image["top"]} for image in result["images"]]
        assert sum(large.values()) == pytest.approx(1, abs=1e-5) and len(large) == 10
        for found in same:
            assert [found[str(c)] for c in range(10)] == pytest.approx(p.tolist(), abs=1e-5)
            assert next(iter(found)) == str(p.argmax().item())
    evaluate.main([str(runs / "ONE" / "resnet8"), "--images", files[0], "--top", "3", "--device", "cpu"])
    header, _, name, *tops = capsys.readouterr().out.splitlines()
    assert header.endswith(", ensemble") and name == files[0]
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


@pytest.mark.parametrize("batch_size", ["2", "128"])
def test_good_images_are_classified_beside_damaged_ones(runs, digit_files, capsys, batch_size):
    """Files and folders: the answers on standard output, the damaged files on standard error, exit code 2."""
    damaged = [digit_files / f"{i}.png" for i in range(11)]
    for file in damaged:
        file.write_text("no image")
    (digit_files / "a" / "lost.png").symlink_to("nowhere.png")
    names = [digit_files / "b.png", "no.png", digit_files / "a", digit_files, digit_files / "a" / ".cache" / "x.png"]
    code, out, err = started([runs / "resnet8", "--json", "--batch_size", batch_size, "--images", *names], capsys)
    result, (warning, error) = json.loads(out), err.splitlines()
    expected = ["b.png", "a/1.jpg", "a/2.PNG", "a/1.jpg", "a/2.PNG", "b.png", "a/.cache/x.png"]
    assert [image["file"] for image in result["images"]] == [str(digit_files / name) for name in expected]
    assert all(len(image["top"]) == 5 for image in result["images"]) and len(result["unreadable"]) == 14
    lost = f"{digit_files}/a/lost.png is a link to {digit_files}/a/nowhere.png, which does not exist"
    assert code == 2 and re.fullmatch("warning: left out, not an image by its name: .* and 2 more", warning)
    first = f"no.png does not exist; {lost}; {damaged[0]} does not decode as an image: "
    assert error.startswith(f"error: 14 image files or folders cannot be used: {first}")
    assert error.endswith("; 4 more")


# --- errors: one line, exit code 2


def exported():
    """The content of an exported file of a resnet8 for two classes."""
    return {"state_dict": models.create_model("resnet8", 2).state_dict(), "model": "resnet8", "classes": ["a", "b"],
            "mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture(scope="module")
def files(runs, tmp_path_factory):
    """A folder with files that cannot be used, or not in this way."""
    root, run = tmp_path_factory.mktemp("files"), runs / "ONE" / "resnet8" / "best.pth"
    content = bytearray(run.read_bytes())
    content[len(content) // 2] ^= 0xFF
    (root / "damaged.pth").write_bytes(content)
    for name, flags in (("unknown_method.pth", {"method": "Mean"}), ("unknown_data.pth", {"dataset": "SVHN"})):
        content = torch.load(run, weights_only=True)
        del content["digest"]
        (root / name).write_bytes(serialise(content | {"flags": content["flags"] | flags}))
    network = models.create_model("resnet8", 10).state_dict()
    nan = exported()
    nan["state_dict"]["head.fc.bias"] += math.nan
    for name, content in {
            "resnet14.pth": models.create_model("resnet14", 10).state_dict(), "nan.pth": nan,
            "exported.pth": exported(), "ONE.pth": models.ONE("resnet8", 10, 4).state_dict(),
            "PCL.pth": models.PCL("resnet8", 10, 3).state_dict(),
            "theirs.pth": {key.partition(".")[2]: value for key, value in network.items()}}.items():
        torch.save(content, root / name)
    (root / "broken.png").write_bytes(b"\x89PNG nothing")
    (root / "there.onnx").write_text("mine")
    (root / "folder.pth").mkdir()
    (root / "empty" / ".cache").mkdir(parents=True)
    for name, pixel in (("empty/.cache/x.png", np.uint8(0)), ("black.png", np.uint8(0)), ("float.tiff", np.float32(0))):
        Image.fromarray(np.full((32, 32), pixel)).save(root / name)
    (root / "empty" / "x.txt").write_text("no image")
    return root


@pytest.mark.parametrize(("line", "message"), [
    ("nothing", "there is no checkpoint at nothing"), (".", "no checkpoint at best.pth"),
    ("damaged.pth", "damaged.pth is damaged|damaged.pth is not a checkpoint"),
    ("unknown_method.pth", "unknown method 'Mean'.*METHODS"), ("unknown_data.pth", "unknown data set, SVHN"),
    ("{group} --model resnet14", "holds a resnet8, not a resnet14: name that one, or another file"),
    ("{group} --model resnet33", "holds a resnet8, not a resnet33"),
    ("{group} --dataset SVHN", "--dataset: unknown name 'SVHN'; known are CIFAR10, "),
    ("{group} --dataset imagenet", "val does not exist"), ("exported.pth", "name it with --data_dir"),
    ("{group} --gpu_id 0,1", "--gpu_id: one number, not 0,1"),
    # checkpoints without a method
    ("resnet14.pth --model resnet33", "unknown network 'resnet33'; known are resnet8, "),
    ("resnet14.pth --model resnet8", "not hold the weights of a resnet8.*--model"),
    ("ONE.pth --model resnet8", "bare weights of a group"), ("PCL.pth --model resnet8", "bare weights of a group"),
    ("theirs.pth --model resnet8 --method PCL", "under the authors' names .*authors' code has no weights like 'peers"),
    # --images
    ("{group} --images broken.png", "broken.png does not decode"), ("{group} --images no.png", "no.png does not exist"),
    ("{group} --images float.tiff", "floating-point"), ("{group} --images empty", "empty holds no image"),
    ("{group} --images black.png --decoder fast", "--decoder: it is for measuring"),
    ("nan.pth --images black.png", "not a number"),
    # --export, --branch
    ("{group} --export x.tflite", r"x.tflite .*\.safetensors"), ("{one} --export no/x.pth", "be written .No such"),
    ("{group} --export there.onnx", "there.onnx exists already.*--overwrite"),
    ("{one} --export folder.pth --overwrite", "folder.pth cannot be written .Is a directory.*export to another place"),
    ("{group} --export {group}/best.pth --overwrite", "belongs to a run"),
    ("{group} --export x.pth", "group without a leader: export one of its 4 students with .* --branch I"),
    ("{group} --export x.pth --branch 4", "branches 0 to 3, not 4"), ("{one} --branch 0", "holds one network"),
    ("{group} --export x.onnx --images black.png", "--images: not allowed with")])
def test_errors(line, message, files, runs, monkeypatch, capsys):
    monkeypatch.chdir(files)
    before = {file: file.stat().st_size for file in files.rglob("*")}
    words = line.format(group=runs / "ONE" / "resnet8", one=runs / "resnet8").split()
    code, out, error = started(words, capsys)
    assert code == 2 and out == "" and re.fullmatch(f"error: .*({message}).*\n", error), error
    assert {file: file.stat().st_size for file in files.rglob("*")} == before
