"""Exported files: opened elsewhere, without this project's reader, they give the run's logits."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import METHODS, ROOT

import data_loader
import evaluate
import utils
from deployment import formats
from deployment.reading import read
from runtime.errors import UserError

ENDINGS = list(formats.FORMATS)
OF_A_GRAPH = (".onnx", ".pt2")  # slow to write, and every method's network has the same graph: two methods suffice
STUDENT = {"ONE": 2, "CL-N": 1, "CL-ILR": 0, "Ind": 3, "DML-pairwise": 1, "OKDDip-entropy-no_leader+KD": 3, "FFL": 1,
           "KDCL-minlogit": 1}
FILES = [(method, ending) for method in METHODS for ending in ENDINGS
         if ending not in OF_A_GRAPH or method in ("OKDDip", "ONE")]

# Opens files as users do: with create_model, or with libraries that need no code of this project.
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
    """JPEG and PNG files of digits, read and normalised: [17, 3, 32, 32]."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    for i, pixels in enumerate(data_loader.digits("").test.images[:17]):
        Image.fromarray(pixels).resize((90, 80)).save(folder / f"{i:02}.{'png' if i % 2 else 'jpg'}")
    pixels = torch.stack([data_loader.load_image(str(file), large=False) for file in sorted(folder.iterdir())])
    return data_loader.Normalise((0.3, 0.3, 0.3), (0.4, 0.4, 0.4), torch.device("cpu"))(pixels)


@pytest.fixture(scope="module")
def files(runs, tmp_path_factory):
    """FILES: the networks of the methods in the kinds of file."""
    root, made = tmp_path_factory.mktemp("exported"), {}
    for method, ending in FILES:
        flags = ["--branch", STUDENT[method]] if method in STUDENT else []
        made[method, ending] = exported(runs / method / "resnet8", root / f"{method or 'one'}{ending}", *flags)
    return made


@pytest.fixture(scope="module")
def found(files, images, tmp_path_factory):
    """Logits and metadata of these files, read by a process in another folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    torch.save(images, folder / "images")
    (folder / "work.json").write_text(json.dumps({
        "root": str(ROOT), "images": str(folder / "images"), "found": str(folder / "found"),
        "files": [str(file) for file in files.values()]}))
    subprocess.run([sys.executable, "-c", ELSEWHERE, "work.json"], cwd=folder, check=True, capture_output=True)
    return torch.load(folder / "found", weights_only=True)


@pytest.mark.parametrize(("method", "ending"), FILES)
def test_elsewhere_it_gives_the_runs_logits(method, ending, runs, files, images, found):
    """In batches of 1, 5 and 11, although two images were traced."""
    saved = read(runs / method / "resnet8")
    with torch.no_grad():
        logits = saved.logits(images, saved.deployed_output(STUDENT.get(method)))
    there = found[str(files[method, ending])]
    assert there["logits"].shape == (17, 10) and (there["logits"] - logits).abs().max() < 1e-4


def test_no_file_holds_paths_of_this_machine(files):
    for file in files.values():
        content = file.read_bytes()
        assert all(str(place).encode() not in content for place in (ROOT, torch.__path__[0], Path.home()))


def test_all_kinds_hold_the_same_metadata(files, found, runs):
    saved = torch.load(runs / "OKDDip" / "resnet8" / "best.pth", weights_only=True)
    expected = {"model": "resnet8", "classes": [str(i) for i in range(10)], "mean": list(saved["mean"]),
                "std": list(saved["std"])}
    for ending in ENDINGS:
        about = found[str(files["OKDDip", ending])]["about"]
        if ending == ".pt2":
            assert about.pop("torch") == torch.__version__
        else:
            assert len(about.pop("digest")) == 64
        assert about == expected
        network = formats.load(files["OKDDip", ending])
        assert not network.training and network.size == 32
        assert (network.name, network.classes, network.mean, network.std) == tuple(expected.values())


@pytest.mark.parametrize("ending", ENDINGS)
def test_exported_files_are_evaluated(ending, files, runs, capsys):
    capsys.readouterr()
    evaluate.main([str(files["OKDDip", ending]), "--dataset", "DIGITS", "--json", "--device", "cpu"])
    result = json.loads(capsys.readouterr().out)
    best = json.loads((runs / "OKDDip" / "resnet8" / "test_best_metrics.json").read_text())
    assert result["figures"]["test_accTop1"] == best["stu_test_accTop1"]
    assert result["figures"]["test_loss"] == pytest.approx(best["stu_test_loss"], rel=1e-5)
    assert result["speed"]["deployed"]["parameters"] == 78_042


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
    with pytest.raises(UserError, match=f"x{ending} is (damaged|not)"):
        formats.load(path)
    with pytest.raises(UserError, match="there is no file at"):
        formats.load(tmp_path / f"none{ending}")


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".onnx"])
def test_a_changed_weight_is_noticed_and_an_old_file_has_no_digest(ending, files, tmp_path, monkeypatch):
    content = files["OKDDip", ending].read_bytes()
    bias = formats.load(files["OKDDip", ".pth"]).head.fc.bias.detach().numpy().tobytes()
    assert content.count(bias) == 1
    path = tmp_path / f"x{ending}"
    path.write_bytes(content.replace(bias, bias[:-1] + bytes([bias[-1] ^ 1])))
    with pytest.raises(UserError, match=f"x{ending} is damaged.*digest differs"):
        formats.load(path)
    if ending == ".pth":
        old = torch.load(files["OKDDip", ending], weights_only=True)
        del old["digest"]
        torch.save(old, path)
    else:
        monkeypatch.setattr(formats, "with_digest", lambda content: content)
        monkeypatch.setattr(formats, "NO_DIGEST", {})
        metadata = {name: getattr(formats.load(files["OKDDip", ending]), name) for name in ("classes", "mean", "std")}
        network = formats.load(files["OKDDip", ".pth"])
        path.write_bytes(formats.FORMATS[ending].write(network, {"model": network.name, **metadata}))
    assert formats.load(path).classes == [str(i) for i in range(10)]


def test_training_imports_none_of_these_packages():
    code = "import sys, train_GL; print({'onnx', 'onnxruntime', 'safetensors'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_a_torch_that_is_too_old_is_named_before_packages(runs, tmp_path, monkeypatch):
    """torch.onnx.export of torch 2.4."""
    monkeypatch.setattr(torch.onnx, "export", lambda model, args, dynamo=False: None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=f"need torch 2.5 or newer, and this is {re.escape(torch.__version__)}"):
        exported(runs / "resnet8", tmp_path / "x.onnx")


@pytest.mark.parametrize(("written", "said"), [
    ("2.5.1", "written by torch 2.5.1"), (None, "torch of an unknown version"), (torch.__version__, "is damaged")])
def test_a_program_that_this_torch_cannot_read(written, said, files, tmp_path):
    """A file whose format is newer than this torch: the message names both versions, if they differ."""
    path = tmp_path / "x.pt2"
    with zipfile.ZipFile(files["OKDDip", ".pt2"]) as old, zipfile.ZipFile(path, "w") as new:
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
