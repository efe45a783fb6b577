"""Exporting: what is written, compared and refused."""

import re

import pytest
import torch

import evaluate
import models
from deployment import exporting, formats
from runtime.errors import UserError


def test_what_is_printed_and_written(runs, tmp_path, capsys):
    evaluate.main([str(runs / "OKDDip" / "resnet8"), "--export", str(tmp_path / "leader.pth")])
    printed = capsys.readouterr().out
    assert re.fullmatch(r".*leader.pth: leader of .*best.pth, resnet8, [\d,]+ bytes; logits on random images "
                        r"differ from the run's by at most \d\.\de[-+]\d\d\n", printed)
    network = torch.load(tmp_path / "leader.pth", weights_only=True)
    assert network.keys() == {"state_dict", "model", "classes", "mean", "std", "size", "digest"}
    assert all(value.is_contiguous() for value in network["state_dict"].values())
    assert [file.name for file in tmp_path.iterdir()] == ["leader.pth"]


@pytest.mark.parametrize(("name", "options", "size", "ending"), [
    ("vgg16", {"dropout": 0.5}, 32, ".safetensors"), ("densenetd40k12", {"efficient": True}, 32, ".pth"),
    ("torchvision:mnasnet0_5", {}, 32, ".safetensors"),  # its layers have versions
    ("resnet8", {}, 224, ".onnx"), ("resnet18", {}, 224, ".pth"), ("resnet18", {}, 32, ".safetensors"),
    pytest.param("vgg16", {"dropout": 0.5}, 32, ".onnx", marks=pytest.mark.slow),
    pytest.param("densenetd40k12", {"efficient": True}, 32, ".onnx", marks=pytest.mark.slow)])
def test_networks_and_image_sizes(name, options, size, ending, tmp_path):
    trained, x = models.create_model(name, 7, **options), torch.randn(3, 3, size, size)
    trained(x)  # the statistics of its BatchNorms
    file, about = tmp_path / f"x{ending}", formats.describe(name, [*"abcdefg"], (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), size)
    exporting.write_checked(file, trained.eval(), about, trained, [x])
    network = formats.load(file)
    with torch.no_grad():
        assert (network(x) - trained(x)).abs().max() < 1e-4 * trained(x).abs().max()
    assert network.size == size and network.classes == [*"abcdefg"]


# --- errors


def test_a_wrong_file_is_refused(runs, tmp_path, monkeypatch):
    """One logit is wrong, in batches or of one image alone, or NaN: nothing is written, and what was there stays."""
    load, path = formats.load, tmp_path / "leader.pth"
    path.write_text("before")
    for more, batch, said in ((0.1, 5, "0.1"), (0.1, 1, "0.1"), (float("nan"), 1, "nan")):
        def wrong(place, model, more=more, batch=batch):
            network = load(place, model)
            return lambda images: network(images) + (len(images) == batch) * torch.tensor([0, 0, 0, more, *[0] * 6])

        monkeypatch.setattr(formats, "load", wrong)
        with pytest.raises(UserError, match=f"is not written: its logits differ by {said}"):
            evaluate.main([str(runs / "OKDDip" / "resnet8"), "--export", str(path), "--overwrite"])
        assert [file.name for file in tmp_path.iterdir()] == [path.name] and path.read_text() == "before"


def test_a_full_disk(runs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="x.pth cannot be written .No space left.*: export to another place"):
        evaluate.main([str(runs / "resnet8"), "--export", str(tmp_path / "x.pth")])
    assert not list(tmp_path.iterdir())
