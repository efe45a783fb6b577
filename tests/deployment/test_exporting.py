"""Exporting: what is written, compared and refused."""

import re

import pytest
import torch
import torchvision

import data_loader
import evaluate
import models
from deployment import exporting, formats
from deployment.reading import read
from runtime.errors import UserError


def exported(run, path, *flags):
    evaluate.main([str(run), "--export", str(path), *map(str, flags)])
    return path


def test_what_is_printed_and_written(runs, tmp_path, capsys):
    exported(runs / "OKDDip" / "resnet8", tmp_path / "leader.pth")
    printed = capsys.readouterr().out
    assert re.fullmatch(r".*leader.pth: leader of .*best.pth, resnet8, [\d,]+ bytes; logits on random and test images "
                        r"differ from the run's by at most \d\.\de[-+]\d\d\n", printed)
    network = torch.load(tmp_path / "leader.pth", weights_only=True)
    assert network.keys() == {"state_dict", "model", "classes", "mean", "std", "size", "digest"}
    assert all(value.is_contiguous() for value in network["state_dict"].values())
    assert [file.name for file in tmp_path.iterdir()] == ["leader.pth"]


def checkpoint(path, name, dataset="folder", num_classes=7, **flags):
    """A checkpoint of a run of OKDDip with random weights and random BatchNorm statistics."""
    torch.manual_seed(0)
    model = models.OKDDip(name, num_classes, 2, **flags)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    torch.save({"state_dict": model.state_dict(), "classes": [f"class {i}" for i in range(num_classes)],
                "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "history": [],
                "flags": {"model": name, "dataset": dataset, "method": "OKDDip", "num_branches": 2,
                          "data_dir": "nowhere", **flags}}, path)
    return path, model.eval()


@pytest.mark.parametrize(("name", "flags", "ending"), [
    ("vgg16", {"dropout": 0.5}, ".safetensors"), ("densenetd40k12", {"efficient": True}, ".pth"),
    ("resnet8", {"dataset": "imagenet"}, ".onnx"), ("resnet18", {"dataset": "imagenet"}, ".pth"),
    ("resnet18", {}, ".safetensors"),
    pytest.param("vgg16", {"dropout": 0.5}, ".onnx", marks=pytest.mark.slow),
    pytest.param("densenetd40k12", {"efficient": True}, ".onnx", marks=pytest.mark.slow)])
def test_networks_and_image_sizes(name, flags, ending, tmp_path):
    run, model = checkpoint(tmp_path / "best.pth", name, **flags)
    pixels = 224 if flags.get("dataset") == "imagenet" else 32
    x = torch.randn(3, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))
    network = formats.load(exported(run, tmp_path / f"leader{ending}"))
    with torch.no_grad():
        _, _, leader = model(x)
        assert (network(x) - leader).abs().max() < 1e-4 * leader.abs().max()
    assert network.size == pixels and len(network.classes) == 7


# --- errors


def test_a_wrong_file_is_refused(runs, tmp_path, monkeypatch):
    """One logit is wrong, or NaN: nothing is written, and the file that was there stays."""
    load, path = formats.load, tmp_path / "leader.pth"
    path.write_text("before")
    for more, said in ((0.1, "0.1"), (float("nan"), "nan")):
        def wrong(place, model, more=more):
            network = load(place, model)
            return lambda images: network(images) + torch.tensor([0, 0, 0, more, *[0] * 6])

        monkeypatch.setattr(formats, "load", wrong)
        with pytest.raises(UserError, match=f"is not written: its logits differ by {said}"):
            exported(runs / "OKDDip" / "resnet8", path, "--overwrite")
        assert [file.name for file in tmp_path.iterdir()] == [path.name] and path.read_text() == "before"


def test_a_full_disk(runs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="x.pth cannot be written .No space left.*: export to another place"):
        exported(runs / "resnet8", tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


def test_what_is_compared(runs, tmp_path):
    """Random images, and test images of the run if the data is there."""
    saved = read(runs / "resnet8")
    noise, one, real = exporting.check_batches(saved)
    assert len(noise) == 5 and len(one) == 1
    digits = torch.from_numpy(data_loader.digits("").test.images)
    normalised = data_loader.Normalise(saved.mean, saved.std, torch.device("cpu"))(digits)
    assert all((normalised == image).flatten(1).all(1).any() for image in real)
    saved.flags.dataset, saved.flags.data_dir = "folder", str(tmp_path / "nowhere")
    assert len(exporting.check_batches(saved)) == 2


def test_sample_images(image_folder, tmp_path, monkeypatch):
    """Some of them, decoded. None if the data is not there; nothing is downloaded."""
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", lambda _: pytest.fail("a download"))
    root = image_folder(train=0, test=30)
    (root / "train").rename(root / "elsewhere")
    for name, count, found in (("folder", 8, 8), ("folder", 60, 60), ("folder", 99, 60), ("DIGITS", 8, 8)):
        assert data_loader.sample_images(name, str(root), count).shape == (found, 32, 32, 3)
    for name in ("folder", "imagenet", "CIFAR10", "CIFAR100"):
        assert data_loader.sample_images(name, str(tmp_path / "nowhere"), 8) is None
    assert not (tmp_path / "nowhere").exists()
