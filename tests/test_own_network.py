"""Networks from elsewhere through the scripts: trained, stopped and resumed, evaluated, exported, loaded back."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import few_digits
from PIL import Image
from processes import assert_same_run, run_until_the_end

import data_loader
import evaluate
import hubconf
import models
import train
import train_DML
import train_GL
import train_kd
from deployment import formats, measuring
from deployment.classifying import classify
from deployment.reading import read
from runtime.checkpoints import serialise
from runtime.errors import UserError

NET = """
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.mix = nn.Conv3d(1, 1, (3, 1, 1), padding=(1, 0, 0))
        self.last = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x):
        x = self.mix(self.stem(x).unsqueeze(1)).squeeze(1)
        x = self.last(x).mean((2, 3))
        return self.fc(F.dropout(x, 0.2, self.training))
"""
ADAMW = ["--optimizer", "adamw", "--cosine", "--warmup", "1", "--label_smoothing", "0.1"]
RUNS = {  # script, flags -> the run's folder
    "baseline": ("train", ["--model", "net.py:Net", "--warmup", "1", "--schedule", "2"], "net-Net"),
    "branches": ("train_GL", ["--model", "net.py:Net", "--branch_at", "last", *ADAMW], "OKDDip/net-Net"),
    "networks": ("train_GL", ["--model", "net.py:Net", "--MulStu"], "OKDDip-N/net-Net"),
    "96": ("train_one", ["--model", "net.py:Net", "--branch_at", "last", "--image_size", "96", "--num_workers", "0"],
           "ONE/net-Net"),
    "DML": ("train_DML", ["--models", "net.py:Net", "resnet8"], "DML/net-Net+resnet8"),
    "KDCL": ("train_KDCL", ["--models", "net.py:Net", "resnet8", *ADAMW], "KDCL/net-Net+resnet8"),
    "OKDPH": ("train_OKDPH", ["--model", "net.py:Net", "--num_branches", "2", "--interval", "5_batch"],
              "OKDPH/net-Net"),
    "PCL": ("train_PCL", ["--model", "net.py:Net", "--branch_at", "last", "--num_branches", "2"], "PCL/net-Net"),
    "torchvision": ("train_GL", ["--model", "torchvision:shufflenet_v2_x0_5", "--branch_at", "stage4",
                                 "--num_branches", "3"], "OKDDip/torchvision-shufflenet_v2_x0_5"),
    "timm": ("train_GL", ["--model", "timm:test_vit", "--MulStu", "--num_branches", "3", "--image_size", "160",
                          "--num_workers", "0", *ADAMW], "OKDDip-N/timm-test_vit"),
}
FLAGS = ["--dataset", "DIGITS", "--num_epochs", "2", "--batch_size", "64", "--device", "cpu", "--lr", "0.01"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "net.py").write_text(NET)
    with few_digits():
        yield tmp_path


def slow(*cases, of):
    """The cases, those named first marked slow."""
    return [pytest.param(case, marks=pytest.mark.slow) if case in cases else case for case in of]


@pytest.mark.parametrize("case", slow("networks", "KDCL", "timm", of=RUNS))
def test_it_is_trained_resumed_and_evaluated(case, folder, monkeypatch, evaluated):
    script, flags, place = RUNS[case]
    for name, stops in (("whole", ()), ("stopped", (2, 3, 5))):
        run_until_the_end(script, [*flags, *FLAGS, "--resume", "auto", "--save_dir", name], monkeypatch, stops)
    whole, stopped = (folder / name / "DIGITS" / place for name in ("whole", "stopped"))
    assert_same_run(stopped, whole)
    result = evaluated(whole)
    best = json.loads((whole / "test_best_metrics.json").read_text())
    assert result["metrics"].items() >= {name: value for name, value in best.items() if name.startswith("test_acc")
                                         }.items()
    assert ("imports" in evaluated.said) == (str(folder / "net.py") in evaluated.said) == ("net.py" in str(flags))


@pytest.mark.parametrize("case", slow("networks", "PCL", "timm", "torchvision", of=[
    "branches", "OKDPH", "96", "networks", "PCL", "timm", "torchvision"]))
def test_an_export_is_the_original_network(case, folder, monkeypatch, evaluated):
    script, flags, place = RUNS[case]
    run_until_the_end(script, [*flags, *FLAGS], monkeypatch)
    run, model = folder / "DIGITS" / place, f"{folder}/net.py:Net" if "net.py" in str(flags) else None
    branch, deployed = (["--branch", "0"], "stu0") if case == "96" else ([], "stu_")
    of_run = evaluated(run, *branch)
    for ending in ("pth", "safetensors"):
        file = folder / f"leader.{ending}"
        evaluate.main([str(run), "--export", str(file), *branch])
        network = hubconf.okddip(str(file), model)
        original = models.plain_network(model or flags[1], 10)
        assert type(network).__name__ == type(original).__name__
        original.load_state_dict(network.state_dict())
        x = network.preprocess(Image.new("L", (70, 50), 90))
        assert x.shape == (1, 3, network.size, network.size)
        assert torch.equal(original.eval()(x), network(x))
    result = evaluated(file, "--dataset", "DIGITS", *(["--model", model] if model else []))
    assert result["metrics"]["test_accTop1"] == of_run["metrics"][f"{deployed}test_accTop1"]
    evaluate.main([str(run), "--export", "leader.pt2", *branch])
    assert formats.load("leader.pt2").size == network.size == {"96": 96, "timm": 160}.get(case, 32)
    (folder / "net.py").write_text("raise SystemExit")  # an exported graph does not need it
    exported = evaluated("leader.pt2", "--dataset", "DIGITS")
    assert exported["metrics"]["test_accTop1"] == result["metrics"]["test_accTop1"]
    assert exported["speed"]["deployed"]["parameters"] is None and measuring.as_text(exported)
    if model:
        with pytest.raises(UserError, match="which a Python file makes: name the file to import"):
            formats.load(file)


def test_it_teaches(folder):
    train.main(["--model", "net.py:Net", "--version", "T", *FLAGS])
    teacher = ["--T_model", "net.py:Net", "--T_model_path", "DIGITS/net-Net_T"]
    train_kd.main(["--model", "resnet8", *teacher, *FLAGS])
    train_GL.main(["--model", "net.py:Net", "--branch_at", "last", *teacher, *FLAGS])
    assert (folder / "DIGITS" / "OKDDip+KD" / "net-Net" / "summary.json").exists()
    with pytest.raises(UserError, match="holds a network for images of 32x32, and here they are 64x64"):
        train_kd.main(["--model", "resnet8", *teacher, *FLAGS, "--image_size", "64", "--overwrite"])
    (folder / "other.py").write_text(NET.replace("Net", "Other"))
    for name in ("other.py:Other", "resnet8"):
        with pytest.raises(UserError, match=f"holds a net.py:Net, not a {name}: name that one, or another file"):
            train_kd.main(["--model", "resnet8", *teacher, "--T_model", name, *FLAGS, "--overwrite"])


def test_a_file_that_has_changed_or_gone(folder, evaluated):
    flags = ["--model", "net.py:Net", *FLAGS, "--num_epochs"]
    train.main([*flags, "1"])
    run = str(folder / "DIGITS" / "net-Net")
    (folder / "net.py").write_text(NET + "# changed\n")
    with pytest.raises(UserError, match="needs net.py:Net, and .*net.py has changed since the training: restore it"):
        evaluate.main([run])
    with pytest.raises(UserError, match="started with other content of .*net.py"):
        train.main([*flags, "2", "--resume", run])
    with pytest.raises(UserError, match="started with other content of .*net.py"):  # it is finished
        train.main([*flags, "1", "--resume", run])
    (folder / "elsewhere").mkdir()
    (folder / "net.py").rename(folder / "elsewhere" / "net.py")
    with pytest.raises(UserError, match="net.py no longer exists: name the file .* with --model"):
        evaluate.main([run])
    with pytest.raises(UserError, match="holds a net.py:Net, not a resnet8: name that one, or another file"):
        evaluate.main([run, "--model", "resnet8"])
    evaluated(run, "--model", "elsewhere/net.py:Net")


def test_two_files_that_have_a_class_of_the_same_name(folder, evaluated):
    """--model names the one that has moved. The other stays that of the training."""
    (folder / "b.py").write_text(NET.replace("nn.ReLU", "nn.Tanh"))
    train_DML.main(["--models", "net.py:Net", "b.py:Net", *FLAGS])
    run = folder / "DIGITS" / "DML" / "net-Net+b-Net"
    before = evaluated(run)["metrics"]
    (folder / "net.py").rename(folder / "moved.py")
    assert evaluated(run, "--model", "moved.py:Net")["metrics"] == before
    (folder / "b.py").unlink()
    with pytest.raises(UserError, match="needs net.py:Net and b.py:Net, and --model can name one file: restore"):
        evaluate.main([str(run), "--model", "moved.py:Net"])


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--model", "net.py:Net"],
     "branches need a place where net.py:Net is cut: --branch_at stem.1 or mix or last or last.0 or fc$"),
    (["--model", "net.py:Net", "--branch_at", "layer4"], "net.py:Net has no submodule 'layer4'"),
    (["--model", "none.py:Net"], "there is no file none.py"), (["--model", "timm:none"], "timm has no network 'none'"),
    (["--model", "torchvision:vit_b_16", "--MulStu"], "does not take images of 32x32 .*: choose another --image_size"),
    (["--model", "net.py:Net", "--MulStu", "--pretrained"], "--pretrained is for the networks of torchvision and timm"),
    (["--model", "net.py:Net", "--MulStu", "--init", "none.pth"], "--init: there is no file none.pth"),
    (["--model", "resnet8", "--branch_at", "layer3"], "--branch_at is for networks from elsewhere: resnet8 does not"),
])
def test_what_does_not_work_is_one_line(flags, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        train_GL.main([*flags, *FLAGS])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--cosine", "--schedule", "1"], "by steps or as a --cosine, not both"),
    (["--warmup", "1", "--num_epochs", "2"], "must end before the learning rate falls, after epoch 1, not 1"),
    (["--warmup", "2", "--cosine", "--num_epochs", "2"], "after epoch 2, not 2"),
    (["--init", "a", "--pretrained"], "not both"), (["--label_smoothing", "2"], "must be at most 1")])
def test_flags_that_contradict_each_other(flags, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        train.parse_args(flags)
    assert end.value.code == 2 and sentence in capsys.readouterr().err


def test_the_schedules_are_those_of_their_formulas(folder):
    """Warm-up: lr (e + 1) / (N + 1). Cosine: lr (1 + cos(pi t / T)) / 2 over the T epochs that are left."""
    warmup = ["--warmup", "2"]
    rates = {"cosine": ["--cosine"], "both": ["--cosine", *warmup], "steps": ["--schedule", "3", *warmup]}
    found = {}
    for name, flags in rates.items():
        train.main(["--model", "net.py:Net", *FLAGS, "--num_epochs", "4", "--version", name, *flags])
        lines = (folder / "DIGITS" / f"net-Net_{name}" / "metrics.jsonl").read_text().splitlines()
        found[name] = [json.loads(line)["lr"] for line in lines]
    cosine = [0.01, 0.01 * (1 + 0.5**0.5) / 2, 0.005, 0.01 * (1 - 0.5**0.5) / 2]
    assert found["cosine"] == pytest.approx(cosine)
    assert found["both"] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01, 0.005])
    assert found["steps"] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01, 0.001])
    with pytest.raises(UserError, match="where the learning rate of --cosine is 0: train anew"):
        train.main(["--model", "net.py:Net", *FLAGS, "--num_epochs", "5", "--version", "cosine", "--cosine", "--resume",
                    "auto"])


def test_an_image_of_any_size_is_prepared_at_that_of_the_run():
    train.main([*FLAGS, "--model", "net.py:Net", "--image_size", "96", "--num_epochs", "1", "--num_workers", "0"])
    loader, _ = data_loader.dataloader("DIGITS", 8, 0, image_size=96)
    assert next(iter(loader))[0].shape == (8, 3, 96, 96)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)).save("noise.png")
    saved = read("DIGITS/net-Net")
    x = data_loader.Normalise(saved.mean, saved.std, torch.device("cpu"))(data_loader.load_image("noise.png", 96)[None])
    with torch.inference_mode():
        expected = saved.logits(x, "").softmax(-1).max().item()
    (image,) = classify(saved, ["noise.png"], torch.device("cpu"))["images"]
    assert image["top"][0]["probability"] == pytest.approx(expected, abs=1e-5)


def test_the_log_names_the_weights_that_are_new(folder, monkeypatch):
    torch.save(models.plain_network("net.py:Net", 3).state_dict(), "start.pth")
    train.main(["--model", "net.py:Net", *FLAGS, "--init", "start.pth"])
    log = (folder / "DIGITS" / "net-Net" / "train.log").read_text()
    assert "the weights start from those of start.pth, but for new ones: fc.weight, fc.bias\n" in log
    (folder / "start.pth").unlink()  # a resumed run does not need it
    train.main(["--model", "net.py:Net", *FLAGS, "--num_epochs", "3", "--init", "start.pth", "--resume", "auto"])
    assert (folder / "DIGITS" / "net-Net" / "train.log").read_text().count("the weights start from") == 1


SMALL = """
import math

import torch
from torch import nn


class Small(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Conv2d(3, 4, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, num_classes))
        self.register_buffer("mask", torch.tensor([-math.inf]))
        self.register_buffer("empty", torch.ones(0))
"""


def test_few_features_unusual_buffers_and_equal_students(folder):
    """Four features, fewer than the eight of one row of W_L. Constants that are not finite are no divergence."""
    (folder / "small.py").write_text(SMALL)
    torch.save(models.plain_network("small.py:Small", 10).state_dict(), "start.pth")
    flags = ["--model", "small.py:Small", "--MulStu", *FLAGS, "--num_epochs", "1"]
    train_GL.main([*flags, "--init", "start.pth"])
    run = folder / "DIGITS" / "OKDDip-N" / "small-Small"
    assert "warning: students start with the same weights" in (run / "train.log").read_text()
    assert json.loads((run / "metrics.jsonl").read_text())["dist"] == 0
    train_GL.main([*flags, "--overwrite"])
    assert "warning" not in (run / "train.log").read_text()
    weights = torch.load(run / "last.pth", weights_only=True)["state_dict"]
    assert weights["aggregation.W_L.weight"].shape == (1, 4) and weights["aggregation.W_L.weight"].abs().sum() > 0


def test_a_file_may_be_named_like_one_of_our_networks(folder):
    (folder / "net.py").rename("vgg_mine.py")
    train.main(["--model", "vgg_mine.py:Net", *FLAGS, "--num_epochs", "1", "--image_size", "64"])


def test_a_folder_gets_the_size_that_the_network_is_made_for(image_folder, folder, capsys):
    root = image_folder(folder / "images", train=4, test=2)
    train.main(["--model", "torchvision:shufflenet_v2_x0_5", "--dataset", "folder", "--data_dir", str(root),
                "--num_epochs", "1", "--batch_size", "4", "--device", "cpu", "--num_workers", "0"])
    assert "--image_size 224: what torchvision:shufflenet_v2_x0_5 is made for" in capsys.readouterr().out
    parameters = json.loads((folder / "folder" / "torchvision-shufflenet_v2_x0_5" / "parameters.json").read_text())
    assert parameters["image_size"] == 224


def test_adamw_has_its_own_rate_and_decay():
    args = train.parse_args(["--optimizer", "adamw"])
    assert (args.lr, args.wd) == (0.001, 0.05) and train.parse_args(["--wd", "0"]).wd == 0


CONFLICT = NET + """

class Named(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        import torch
        self.tied = self.fc
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
        self.size = 1

    def forward(self, x):
        return super().forward((x - self.mean) * self.size)


class Branching(Net):
    def forward(self, x):
        return super().forward(x if x.mean() > 0 else -x)
"""


def test_a_network_may_have_attributes_named_like_the_metadata(folder):
    (folder / "net.py").write_text(CONFLICT)
    train.main(["--model", "net.py:Named", *FLAGS])
    evaluate.main(["DIGITS/net-Named", "--export", "named.safetensors"])
    network = hubconf.okddip("named.safetensors", "net.py:Named")
    assert network.size == 32 and len(network.mean) == 3 and network.network.size == 1
    assert torch.equal(network(torch.ones(1, 3, 32, 32)), network.network(torch.ones(1, 3, 32, 32)))


def test_a_network_that_an_exporter_does_not_support_is_one_line(folder):
    (folder / "net.py").write_text(CONFLICT)
    train.main(["--model", "net.py:Branching", *FLAGS])
    with pytest.raises(UserError, match="this network cannot be written to a .pt2 file .*: export a .pth file"):
        evaluate.main(["DIGITS/net-Branching", "--export", "branching.pt2"])
    assert not (folder / "branching.pt2").exists()


@pytest.mark.parametrize("change", [{"model": "{}/evil.py:Net"}, {"models": ["{}/evil.py:Net", "resnet8"]},
                                    {"model": "{}/evil.py:Net", "models": ["resnet8"]}])
def test_a_checkpoint_cannot_make_a_file_run_that_the_training_did_not_name(folder, change):
    train.main(["--model", "net.py:Net", *FLAGS])
    (folder / "evil.py").write_text("open('imported', 'w').close()\n")
    path = folder / "DIGITS" / "net-Net" / "best.pth"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["digest"]
    for name, value in change.items():
        names = [name.format(folder) for name in value] if isinstance(value, list) else value.format(folder)
        checkpoint["flags"][name] = names
    path.write_bytes(serialise(checkpoint))
    with pytest.raises(UserError, match="is not a checkpoint of a run that can be rebuilt"):
        evaluate.main([str(path)])
    assert not (folder / "imported").exists()
