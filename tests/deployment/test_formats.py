"""Exported files: opened without this project's reader, they give the run's logits; damaged ones are refused."""

import json
import random
import re
import sys
import zipfile
from pathlib import Path

import onnxruntime
import pytest
import torch
from conftest import ROOT
from image_data import random_images
from processes import in_processes
from safetensors import safe_open
from safetensors.torch import save_file

import evaluate
import models
import utils
from deployment import formats
from deployment.measuring import measure_speed
from deployment.reading import load_teacher, read
from runtime.checkpoints import digest
from runtime.errors import UserError

ENDINGS = list(formats.FORMATS)
# Of each kind of group one whose students have no leader, and PCL, whose deployed network is in a copy of the group.
FILES = [("OKDDip", ending, None) for ending in ENDINGS] + [
    ("", ".pth", None), ("PCL", ".safetensors", None), ("OKDPH", ".pth", None), ("OKDDip-N", ".safetensors", None),
    ("CL-N", ".pth", 1), ("ONE", ".safetensors", 2), ("OKDDip-entropy-no_leader+KD", ".pth", 3)]


def exported(run, path, *flags):
    evaluate.main([str(run), "--export", str(path), *map(str, flags)])
    return path


@pytest.fixture(scope="module")
def files(runs, tmp_path_factory):
    """The leader of OKDDip in a file of each kind, by the ending."""
    root = tmp_path_factory.mktemp("exported")
    return {ending: exported(runs / "OKDDip" / "resnet8", root / f"leader{ending}") for ending in ENDINGS}


def from_strings(strings):
    return {name: value if name == "model" else json.loads(value) for name, value in strings.items()}


def rebuilt(weights, about):
    network = models.create_model(about["model"], len(about["classes"])).eval()
    network.load_state_dict(weights)
    return network, about


def opened(path):
    """-> the network and its metadata, read with nothing of deployment/."""
    if path.suffix == ".pth":
        content = torch.load(path, weights_only=True)
        return rebuilt(content.pop("state_dict"), content)
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return rebuilt({name: file.get_tensor(name) for name in file.keys()}, from_strings(file.metadata()))
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return (lambda x: torch.from_numpy(session.run(None, {"images": x.contiguous().numpy()})[0]),
                from_strings(session.get_modelmeta().custom_metadata_map))
    extra = {"metadata.json": ""}
    return torch.export.load(path, extra_files=extra).module(), json.loads(extra["metadata.json"])


@pytest.mark.parametrize(("method", "ending", "branch"), FILES)
def test_a_file_gives_the_runs_logits(method, ending, branch, runs, files, tmp_path):
    """In batches of 1, 5 and 11, although two images were traced. All kinds hold the same metadata."""
    run, flags = runs / method / "resnet8", [] if branch is None else ["--branch", branch]
    network, about = opened(files[ending] if method == "OKDDip" else exported(run, tmp_path / f"x{ending}", *flags))
    saved, images = read(run), random_images(17)
    with torch.no_grad():
        logits = torch.cat([network(x) for x in images.split([1, 5, 11])])
        expected = saved.logits(images, saved.deployed_output(branch))
    assert (logits - expected).abs().max() < 1e-4
    if ending == ".pt2":
        assert about.pop("torch") == torch.__version__
    else:
        assert len(about.pop("digest")) == 64
    assert about == {"model": "resnet8", "classes": [str(i) for i in range(10)], "mean": list(saved.mean),
                     "std": list(saved.std), "size": 32}


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_exported_file_is_evaluated(ending, files, runs, evaluated):
    result = evaluated(files[ending], "--dataset", "DIGITS")
    best = json.loads((runs / "OKDDip" / "resnet8" / "test_best_metrics.json").read_text())
    assert result["metrics"]["test_accTop1"] == best["stu_test_accTop1"]
    assert result["metrics"]["test_loss"] == pytest.approx(best["stu_test_loss"], rel=1e-5)
    assert result["speed"]["deployed"]["parameters"] == (78_042 if ending in (".pth", ".safetensors") else None)


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_the_speed_of_a_file_without_access_to_its_weights(ending, files):
    speed = measure_speed(read(files[ending]), "", 4, torch.device("cpu"))
    assert speed.keys() == {"batch_size", "deployed"} and speed["deployed"]["images_per_second"] > 0


def test_what_an_exported_file_is_good_for(files, tmp_path):
    """With weights it is a teacher, and can be exported again, as another kind."""
    again, data = exported(files[".pth"], tmp_path / "again.safetensors"), read(files[".pth"])
    teacher = load_teacher("resnet8", files[".pth"], data)
    with torch.no_grad():
        assert formats.load(again)(random_images(3)).equal(teacher(random_images(3)))
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    with pytest.raises(UserError, match="does not give access to its weights: name the run itself"):
        exported(files[".onnx"], tmp_path / "x.pth")
    with pytest.raises(UserError, match="does not give access to its weights: name the run itself"):
        load_teacher("resnet8", files[".pt2"], data)


def test_no_file_holds_paths_of_this_machine(files):
    for file in files.values():
        content = file.read_bytes()
        assert all(str(place).encode() not in content for place in (ROOT, torch.__path__[0], Path.home()))


# --- errors


def test_a_good_file_is_not_called_damaged(files, tmp_path):
    """If what --model names is wrong."""
    (tmp_path / "net.py").write_text("raise SystemExit")  # it is not imported
    with pytest.raises(UserError, match=f"^{files['.pth']}: these are the weights of resnet8: leave out .*net.py:Net"):
        formats.load(files[".pth"], f"{tmp_path}/net.py:Net")


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_missing_packages(missing, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as end:
        utils.command(lambda: exported(runs / "resnet8", tmp_path / "x.onnx"))
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error:")
    assert error.endswith("pip install onnx onnxscript onnxruntime\n")


def test_a_torch_that_is_too_old_is_named_before_packages(runs, tmp_path, monkeypatch):
    """torch.onnx.export of torch 2.4."""
    monkeypatch.setattr(torch.onnx, "export", lambda model, args, dynamo=False: None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=f"need torch 2.5 or newer, and this is {re.escape(torch.__version__)}"):
        exported(runs / "resnet8", tmp_path / "x.onnx")


@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_files(ending, files, tmp_path):
    """Cut off, or with one bit of a weight changed: all but .pt2 files have a digest."""
    path, content = tmp_path / f"x{ending}", files[ending].read_bytes()
    path.write_bytes(content[:9000])
    with pytest.raises(UserError, match=f"x{ending} is (damaged|not)"):
        formats.load(path)
    bias = formats.load(files[".pth"]).head.fc.bias.detach().numpy().tobytes()
    assert content.count(bias) == 1
    path.write_bytes(content.replace(bias, bias[:-1] + bytes([bias[-1] ^ 1])))
    if ending != ".pt2":
        with pytest.raises(UserError, match=f"x{ending} is damaged.*digest differs"):
            formats.load(path)
    with pytest.raises(UserError, match="there is no file at"):
        formats.load(tmp_path / f"none{ending}")


def read_damaged(whole, path):
    """Cut a file or flip one bit of it, 40 times, mostly near its ends, where its structure is."""
    def what_is_in(path):
        network = formats.load(path)
        with torch.no_grad():
            return digest([network.name, network.classes, network.mean, network.std, network.size, network(x)])

    x, rng, content = torch.ones(1, 3, 32, 32), random.Random(0), whole.read_bytes()
    right, refused = what_is_in(whole), 0
    for i in range(40):
        place = rng.choice([1, -1]) * rng.randrange(1, 3000) if i % 2 else rng.randrange(len(content))
        changed = bytearray(content[:place] if i % 5 == 0 else content)
        if i % 5:
            changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            assert what_is_in(path) == right, f"damage {i}"  # the bit means nothing
        except UserError as error:
            assert "\n" not in str(error), f"damage {i}"
            refused += 1
    assert refused > 20


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".onnx"])
def test_files_that_are_damaged_at_random(ending, files, tmp_path):
    """Refused, or right. In a process of its own: no library ends it or waits forever."""
    in_processes(read_damaged, [(files[ending], tmp_path / f"damaged{ending}")])


def test_files_of_older_code_have_no_digest(files, tmp_path):
    """tests/test_evaluate.py has such a .pth file."""
    network, about = opened(files[".safetensors"])
    del about["digest"]
    save_file(network.state_dict(), tmp_path / "old.safetensors", formats.as_strings(about))
    assert formats.load(tmp_path / "old.safetensors").classes == [str(i) for i in range(10)]


@pytest.mark.parametrize(("written", "said"), [
    ("2.5.1", "written by torch 2.5.1"), (None, "torch of an unknown version"), (torch.__version__, "is damaged")])
def test_a_program_that_this_torch_cannot_read(written, said, files, tmp_path):
    """A file whose format is newer than this torch: the message names both versions, if they differ."""
    path = tmp_path / "x.pt2"
    with zipfile.ZipFile(files[".pt2"]) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(("/model.json", "/metadata.json")):
                about = json.loads(content)
                if "schema_version" in about:
                    about["schema_version"]["major"] = 999
                about["torch"] = written
                content = json.dumps({k: v for k, v in about.items() if v is not None}).encode()
            new.writestr(name, content)
    with pytest.raises(UserError, match=said) as refused:
        formats.load(path)
    assert "damaged" in said or f"this is {torch.__version__}" in str(refused.value)
