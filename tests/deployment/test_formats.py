"""Exported files: opened elsewhere, without this project's reader, they give the run's logits."""

import json
import re
import subprocess
import sys
from pathlib import Path

import export
import numpy as np
import pytest
import torch
from conftest import METHODS, ROOT
from errors import UserError

import data_loader
import evaluate
import models
import utils

ENDINGS = list(export.FORMATS)
STUDENT = {"ONE": 2, "CL-N": 1, "CL-ILR": 0, "Ind": 3, "DML-pairwise": 1, "OKDDip-entropy-no_leader+KD": 3}

# Opens files as their users do: with create_model, or with what needs no code of this project.
ELSEWHERE = """
import json, sys
import torch
work = json.load(open(sys.argv[1]))

def of_weights(weights, about):
    sys.path.insert(0, work["root"])
    import models
    network = models.create_model(about["model"], len(about["classes"])).eval()
    network.load_state_dict(weights)
    return network, about

def opened(path):
    ending = path.rpartition(".")[2]
    if ending == "pth":
        content = torch.load(path, weights_only=True)
        return of_weights(content.pop("state_dict"), content)
    if ending == "safetensors":
        from safetensors import safe_open
        with safe_open(path, "pt") as file:
            return of_weights({name: file.get_tensor(name) for name in file.keys()}, read(file.metadata()))
    if ending == "onnx":
        import onnxruntime
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        network = lambda x: torch.from_numpy(session.run(None, {"images": x.contiguous().numpy()})[0])
        return network, read(session.get_modelmeta().custom_metadata_map)
    extra = {"metadata.json": ""}
    return torch.export.load(path, extra_files=extra).module(), json.loads(extra["metadata.json"])

def read(strings):
    return {name: value if name == "model" else json.loads(value) for name, value in strings.items()}

images, found = torch.load(work["images"]), {}
for path in work["files"]:
    network, about = opened(path)
    with torch.no_grad():
        logits = torch.cat([network(x) for x in images.split([1, 5, len(images) - 6])])
    found[path] = {"logits": logits, "about": about}
torch.save(found, work["found"])
"""


def exported(run, path, *flags):
    evaluate.main([str(run), "--export", str(path), *map(str, flags)])
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Real files, JPEG and PNG, of digits, and how a network wants them: [17, 3, 32, 32]."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    for i, pixels in enumerate(data_loader.digits("").test.images[:17]):
        Image.fromarray(pixels).resize((90, 80)).save(folder / f"{i:02}.{'png' if i % 2 else 'jpg'}")
    pixels = torch.stack([data_loader.load_image(str(file), large=False) for file in sorted(folder.iterdir())])
    return data_loader.Normalise((0.3, 0.3, 0.3), (0.4, 0.4, 0.4), torch.device("cpu"))(pixels)


@pytest.fixture(scope="module")
def files(runs, tmp_path_factory):
    """Every method's network in every kind of file."""
    root, made = tmp_path_factory.mktemp("exported"), {}
    for method in METHODS:
        flags = ["--branch", STUDENT[method]] if method in STUDENT else []
        for ending in ENDINGS:
            made[method, ending] = exported(runs / method / "resnet8", root / f"{method or 'one'}{ending}", *flags)
    return made


@pytest.fixture(scope="module")
def found(files, images, tmp_path_factory):
    """What a process in another folder finds in them."""
    folder = tmp_path_factory.mktemp("elsewhere")
    torch.save(images, folder / "images")
    (folder / "work.json").write_text(json.dumps({
        "root": str(ROOT), "images": str(folder / "images"), "found": str(folder / "found"),
        "files": [str(file) for file in files.values()]}))
    subprocess.run([sys.executable, "-c", ELSEWHERE, "work.json"], cwd=folder, check=True, capture_output=True)
    return torch.load(folder / "found", weights_only=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_elsewhere_it_gives_the_runs_logits(method, ending, runs, files, images, found):
    """Batches of 1, 5 and 11 where two images were traced; ONNX to 1e-4, as the others."""
    subject = evaluate.read(evaluate.parse_args([str(runs / method / "resnet8")]))
    row = evaluate.deployed_row(subject, STUDENT.get(method))
    with torch.no_grad():
        logits = subject.predict(subject.model, images)[0][:, list(subject.rows).index(row)]
    there = found[str(files[method, ending])]
    assert there["logits"].shape == (17, 10) and (there["logits"] - logits).abs().max() < 1e-4


def test_no_file_tells_where_it_was_made(files):
    for file in files.values():
        content = file.read_bytes()
        assert all(str(place).encode() not in content for place in (ROOT, torch.__path__[0], Path.home()))


def test_all_say_the_same(files, found, runs):
    saved = torch.load(runs / "OKDDip" / "resnet8" / "best.pth", weights_only=True)
    expected = {"model": "resnet8", "classes": [str(i) for i in range(10)], "mean": list(saved["mean"]),
                "std": list(saved["std"])}
    for ending in ENDINGS:
        assert found[str(files["OKDDip", ending])]["about"] == expected
        network = export.load(files["OKDDip", ending])
        assert not network.training and network.size == 32
        assert (network.name, network.classes, network.mean, network.std) == tuple(expected.values())


@pytest.mark.parametrize("ending", ENDINGS)
def test_exported_files_are_evaluated_and_asked(ending, files, runs, images, tmp_path, capsys):
    capsys.readouterr()
    evaluate.main([str(files["OKDDip", ending]), "--dataset", "DIGITS", "--json", "--device", "cpu"])
    result = json.loads(capsys.readouterr().out)
    best = json.loads((runs / "OKDDip" / "resnet8" / "test_best_metrics.json").read_text())
    assert result["figures"]["test_accTop1"] == best["stu_test_accTop1"]
    assert result["figures"]["test_loss"] == pytest.approx(best["stu_test_loss"], rel=1e-5)
    assert result["speed"]["deployed"]["parameters"] == 78_042


@pytest.mark.parametrize("ending", [".safetensors", ".onnx"])
def test_from_file_to_file(ending, files, tmp_path, images):
    """A file with weights can be exported again, in another kind."""
    again = export.load(exported(files["OKDDip", ".pth"], tmp_path / f"again{ending}"))
    with torch.no_grad():
        assert again(images).allclose(export.load(files["OKDDip", ".pth"])(images), atol=1e-4)


def test_files_without_weights_are_not_exported(files, tmp_path):
    with pytest.raises(UserError, match="does not give its weights away"):
        exported(files["OKDDip", ".onnx"], tmp_path / "again.pth")


def test_what_is_said(runs, tmp_path, capsys):
    exported(runs / "OKDDip" / "resnet8", tmp_path / "leader.pth")
    said = capsys.readouterr().out
    assert re.fullmatch(r".*leader.pth: leader of .*best.pth, resnet8, [\d,]+ bytes; logits on random and test images "
                        r"differ from the run's by at most \d\.\de[-+]\d\d\n", said)
    network = torch.load(tmp_path / "leader.pth", weights_only=True)
    assert network.keys() == {"state_dict", "model", "classes", "mean", "std"}
    assert all(value.is_contiguous() for value in network["state_dict"].values())


# --- other networks


def checkpoint(path, name, dataset="folder", num_classes=7, **flags):
    """A checkpoint of a run of OKDDip whose weights, statistics of BatchNorm included, were drawn."""
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
            network = export.load(exported(run, tmp_path / f"leader{ending}"))
            assert (network(x) - leader).abs().max() < 1e-4 * leader.abs().max()
            assert network.size == size and len(network.classes) == 7
    if ending == ".pth":  # the only kind here of a network that takes images of an unusual size
        said = torch.load(tmp_path / "leader.pth", weights_only=True)
        assert said.get("size") == (32 if name == "resnet18" else None)


# --- what is refused


@pytest.mark.parametrize("ending", [".pth", ".onnx"])
def test_a_wrong_export_is_refused(ending, runs, tmp_path, monkeypatch):
    """One weight of 78,042 is another one: nothing is written, and what was there stays."""
    right = export.plain

    def wrong(network, classes):
        copy = right(network, classes)
        copy.state_dict()["head.fc.bias"][3] += 0.1
        return copy

    monkeypatch.setattr(export, "plain", wrong)
    path = tmp_path / f"leader{ending}"
    path.write_text("before")
    with pytest.raises(UserError, match="is not written: its logits differ by 0.1"):
        exported(runs / "OKDDip" / "resnet8", path, "--overwrite")
    assert [f.name for f in tmp_path.iterdir()] == [path.name] and path.read_text() == "before"


def test_not_a_number_is_no_agreement(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "difference", lambda *_: torch.tensor([float("nan"), 1]))
    with pytest.raises(UserError, match="is not written"):
        exported(runs / "resnet8", tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


def test_a_full_disk(runs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.os, "fsync", full)
    with pytest.raises(UserError, match="x.pth cannot be written .No space left"):
        exported(runs / "resnet8", tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("ending", "missing"), [(".onnx", "onnx"), (".onnx", "onnxruntime"),
                                                 (".safetensors", "safetensors")])
def test_missing_packages(ending, missing, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as end:
        utils.command(lambda: exported(runs / "resnet8", tmp_path / f"x{ending}"))
    error = capsys.readouterr().err
    install = "pip install onnx onnxscript onnxruntime" if ending == ".onnx" else "pip install safetensors"
    assert end.value.code == 2 and error.startswith("error:") and error.endswith(f"{install}\n")


@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_files(ending, files, tmp_path):
    path = tmp_path / f"x{ending}"
    path.write_bytes(files["OKDDip", ending].read_bytes()[:9000])
    with pytest.raises(UserError, match=f"x{ending} is not"):
        export.load(path)
    with pytest.raises(UserError, match="there is no file at"):
        export.load(tmp_path / f"none{ending}")


def test_training_imports_none_of_it():
    code = "import sys, train_GL, run; print({'onnx', 'onnxruntime', 'safetensors', 'export'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_what_is_compared(runs, image_folder, tmp_path):
    """Random images, and the run's own test images where they are at hand."""
    subject = evaluate.read(evaluate.parse_args([str(runs / "resnet8")]))
    noise, one, real = evaluate.check_batches(subject)
    assert len(noise) == 5 and len(one) == 1
    digits = torch.from_numpy(data_loader.digits("").test.images)
    normalised = data_loader.Normalise(subject.mean, subject.std, torch.device("cpu"))(digits)
    assert all((normalised == image).flatten(1).all(1).any() for image in real)
    subject.flags.dataset, subject.flags.data_dir = "folder", str(tmp_path / "nowhere")
    assert len(evaluate.check_batches(subject)) == 2


def test_the_check_sees_real_images(image_folder, tmp_path):
    """Some of them, decoded; none where they are not at hand."""
    root = image_folder(train=1, test=30)
    assert data_loader.glimpse("folder", str(root), 8).shape == (8, 32, 32, 3)
    assert data_loader.glimpse("DIGITS", "", 8).shape == (8, 32, 32, 3)
    for name in ("folder", "imagenet", "CIFAR10", "CIFAR100"):
        assert data_loader.glimpse(name, str(tmp_path / "nowhere"), 8) is None
    assert not (tmp_path / "nowhere").exists()
    assert np.unique([len(data_loader.glimpse("folder", str(root), n)) for n in (60, 99)]) == [60]


def test_a_torch_that_is_too_old_says_so(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", lambda model, args, dynamo=False: None)
    with pytest.raises(UserError, match="newer torch"):
        exported(runs / "resnet8", tmp_path / "x.onnx")
