"""Exporting: what is written, compared and refused."""

import re

import numpy as np
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


@pytest.fixture(scope="module")
def leader(runs, tmp_path_factory):
    """The leader of a run in a .pth file."""
    return exported(runs / "OKDDip" / "resnet8", tmp_path_factory.mktemp("exported") / "leader.pth")


@pytest.mark.parametrize("ending", [".safetensors", ".onnx"])
def test_from_file_to_file(ending, leader, tmp_path):
    """A file with weights can be exported again, as another kind."""
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    again = formats.load(exported(leader, tmp_path / f"again{ending}"))
    with torch.no_grad():
        assert again(images).allclose(formats.load(leader)(images), atol=1e-4)


def test_files_without_weights_are_not_exported(leader, tmp_path):
    file = exported(leader, tmp_path / "leader.onnx")
    with pytest.raises(UserError, match="does not give access to its weights"):
        exported(file, tmp_path / "again.pth")


def test_what_is_printed_and_written(runs, tmp_path, capsys):
    exported(runs / "OKDDip" / "resnet8", tmp_path / "leader.pth")
    printed = capsys.readouterr().out
    assert re.fullmatch(r".*leader.pth: leader of .*best.pth, resnet8, [\d,]+ bytes; logits on random and test images "
                        r"differ from the run's by at most \d\.\de[-+]\d\d\n", printed)
    network = torch.load(tmp_path / "leader.pth", weights_only=True)
    assert network.keys() == {"state_dict", "model", "classes", "mean", "std", "digest"}
    assert all(value.is_contiguous() for value in network["state_dict"].values())


# --- other networks


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


@pytest.mark.parametrize(("name", "flags", "endings"), [
    ("vgg16", {"dropout": 0.5}, [".onnx"]), ("densenetd40k12", {"efficient": True}, [".onnx", ".pth"]),
    ("resnet18", {"dataset": "imagenet"}, [".onnx", ".safetensors"]), ("resnet18", {}, [".pth"])])
def test_networks(name, flags, endings, tmp_path):
    run, model = checkpoint(tmp_path / "best.pth", name, **flags)
    size = 224 if flags.get("dataset") == "imagenet" else 32
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        _, _, leader = model(x)
        for ending in endings:
            network = formats.load(exported(run, tmp_path / f"leader{ending}"))
            assert (network(x) - leader).abs().max() < 1e-4 * leader.abs().max()
            assert network.size == size and len(network.classes) == 7
    if ending == ".pth":  # only a network with an unusual image size has the entry "size"
        content = torch.load(tmp_path / "leader.pth", weights_only=True)
        assert content.get("size") == (32 if name == "resnet18" else None)


# --- errors


@pytest.mark.parametrize("ending", [".pth", ".onnx"])
def test_a_wrong_file_is_refused(ending, runs, tmp_path, monkeypatch):
    """One weight of 78,042 is wrong: nothing is written, and the file that was there stays."""
    right = exporting.plain_copy

    def wrong(network, classes):
        copy = right(network, classes)
        copy.state_dict()["head.fc.bias"][3] += 0.1
        return copy

    monkeypatch.setattr(exporting, "plain_copy", wrong)
    path = tmp_path / f"leader{ending}"
    path.write_text("before")
    with pytest.raises(UserError, match="is not written: its logits differ by 0.1"):
        exported(runs / "OKDDip" / "resnet8", path, "--overwrite")
    assert [f.name for f in tmp_path.iterdir()] == [path.name] and path.read_text() == "before"


def test_a_nan_is_refused(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "difference", lambda *_: torch.tensor([float("nan"), 1]))
    with pytest.raises(UserError, match="is not written"):
        exported(runs / "resnet8", tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


def test_a_full_disk(runs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="x.pth cannot be written .No space left"):
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
    assert data_loader.sample_images("folder", str(root), 8).shape == (8, 32, 32, 3)
    assert data_loader.sample_images("DIGITS", "", 8).shape == (8, 32, 32, 3)
    for name in ("folder", "imagenet", "CIFAR10", "CIFAR100"):
        assert data_loader.sample_images(name, str(tmp_path / "nowhere"), 8) is None
    assert not (tmp_path / "nowhere").exists()
    assert np.unique([len(data_loader.sample_images("folder", str(root), n)) for n in (60, 99)]) == [60]
