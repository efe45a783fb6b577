"""evaluate.py's figures and answers: the runs' own, the formulas', those of checkpoints under the authors' names."""

import json
import math
import re
import shutil

import engine
import numpy as np
import pytest
import slow
import torch
from checkpoint import serialise
from conftest import METHODS, few_digits
from PIL import Image

import data_loader
import evaluate
import models
import train
import train_GL
import utils


@pytest.fixture
def ask(capsys):
    """ask(flags...) -> what evaluate.py prints as JSON."""
    def start(*flags):
        capsys.readouterr()
        evaluate.main([*map(str, flags), "--json", "--device", "cpu"])
        return json.loads(capsys.readouterr().out)

    return start


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def checkpoint(path):
    return torch.load(path, weights_only=True)


def logits_and_labels(folder):
    """Of a run's best.pth on the test images: logits [N, R, C] by the rows' own order, labels [N]."""
    subject = evaluate.read(evaluate.parse_args([str(folder)]))
    loader = data_loader.dataloader("DIGITS", 32)[1]
    with torch.no_grad():
        batches = [(subject.predict(subject.model, images)[0], labels) for images, labels in loader]
    return torch.cat([z for z, _ in batches]), torch.cat([y for _, y in batches])


# --- figures


@pytest.mark.parametrize("method", METHODS)
def test_figures_are_those_of_the_run(method, runs, ask):
    folder = runs / method / "resnet8"
    best = json.loads((folder / "test_best_metrics.json").read_text())
    result = ask(folder)
    own = {name: value for name, value in best.items() if "test_" in name or name in ("dist", "attention")}
    assert own.items() <= result["figures"].items() and len(own) >= 3
    further = result["figures"].keys() - own.keys()
    assert further == {f"{row}test_{name}" for row in result["rows"] for name in ("ece", "accPerClass")}
    assert result["epoch"] == best["epoch"] and result["method"] == (method or "baseline")
    assert result["images"] == 60 and result["classes"] == [str(i) for i in range(10)]


def test_a_file_means_that_file(runs, ask, tmp_path):
    shutil.copytree(runs / "OKDDip" / "resnet8", tmp_path / "run")
    for name in ("best.pth", "last.pth"):
        figures = ask(tmp_path / "run" / name)["figures"]
        record = checkpoint(tmp_path / "run" / name)["history"][-1]
        assert figures["stu_test_loss"] == record["stu_test_loss"]


def test_a_run_means_its_best_epoch(runs, ask, tmp_path):
    """best.pth, whose weights are others here than last.pth's."""
    folder = tmp_path / "run"
    shutil.copytree(runs / "OKDDip" / "resnet8", folder)
    best = checkpoint(folder / "best.pth")
    del best["digest"]
    best["state_dict"]["heads.3.fc.bias"][2] += 100
    (folder / "best.pth").write_bytes(serialise(best))
    figures = ask(folder)["figures"]
    assert figures["stu_test_accPerClass"] == [100 * (c == 2) for c in range(10)]
    assert ask(folder / "last.pth")["figures"]["stu_test_accPerClass"] != figures["stu_test_accPerClass"]


def test_half_precision_is_measured_as_the_run_did(ask, tmp_path, pictures):
    with few_digits():
        train_GL.main(["--model", "resnet8", "--dataset", "DIGITS", "--num_epochs", "1", "--batch_size", "64", "--amp",
                       "bf16", "--device", "cpu", "--save_dir", str(tmp_path)])
        folder = tmp_path / "DIGITS" / "OKDDip" / "resnet8"
        figures, record = ask(folder)["figures"], json.loads((folder / "test_best_metrics.json").read_text())
        answer = ask(folder, "--images", pictures[0][0])["images"][0]["top"]
    assert record["stu_test_loss"] == figures["stu_test_loss"] and record["attention"] == figures["attention"]
    assert np.array(record["attention"]).sum(1) == pytest.approx([1] * 3, abs=2e-3)  # each weight has 8 bits
    logits = [math.log(top["probability"]) for top in answer]
    assert len(answer) == 5 and logits == sorted(logits, reverse=True)


def test_other_figures_by_the_formulas(runs, ask):
    folder = runs / "OKDDip" / "resnet8"
    z, labels = logits_and_labels(folder)
    z, labels, result = z.double().transpose(0, 1).tolist(), labels.tolist(), ask(folder)
    figures = result["figures"]
    for row, own in zip(result["rows"], z, strict=True):
        nll = sum(slow.cross_entropy(image, y) for image, y in zip(own, labels, strict=True)) / len(labels)
        assert figures[f"{row}test_loss"] == pytest.approx(nll, rel=1e-5)
        assert figures[f"{row}test_ece"] == pytest.approx(slow.calibration_error(own, labels), abs=1e-5)
        by_class = [slow.accuracy_of_class(own, labels, c) for c in range(10)]
        assert figures[f"{row}test_accPerClass"] == pytest.approx(by_class)


def measured(logits, labels):
    """further_sums over all images in two batches, by their names."""
    logits, labels = torch.tensor(logits, dtype=torch.float32).unsqueeze(1), torch.tensor(labels)
    sums = [evaluate.further_sums(z.log_softmax(-1), engine.right(z, y)[..., 0], y)
            for z, y in zip(logits.split(3), labels.split(3), strict=True)]
    means = {name: (sum(s[name] for s in sums) / len(labels)).tolist() for name in sums[0]}
    return evaluate.name_further(means, {"": "network"})


def test_a_known_calibration_error():
    """Four images at confidence 0.9, three of them right; one at 0.6, wrong: 0.8 |0.75 - 0.9| + 0.2 |0 - 0.6|."""
    sure, unsure = [math.log(0.9), math.log(0.1)], [math.log(0.4), math.log(0.6)]
    figures = measured([sure, sure, sure, sure, unsure], [0, 0, 0, 1, 0])
    assert figures["test_ece"] == pytest.approx(0.8 * 0.15 + 0.2 * 0.6)
    assert figures["test_accPerClass"] == pytest.approx([75, 0])


def test_calibration_of_the_sure():
    """Confidence 1 is in the last bin; a class without images has no accuracy."""
    figures = measured([[0.0, 200.0, 0.0]] * 4, [1, 1, 0, 1])
    assert figures["test_ece"] == pytest.approx(0.25)
    assert figures["test_accPerClass"] == [0, 100, None]


def test_calibration_within_a_bin_cancels_between_bins_adds():
    """Bins are what tells a calibrated network from one that is sure of the wrong images."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(200, 5, generator=generator)).tolist()
    labels = torch.randint(5, (200,), generator=generator).tolist()
    z, y = torch.tensor(logits).unsqueeze(1), torch.tensor(labels)
    means = {k: (v / 200).tolist()
             for k, v in evaluate.further_sums(z.log_softmax(-1), engine.right(z, y)[..., 0], y).items()}
    found = evaluate.name_further(means, {"": ""})["test_ece"]
    assert found == pytest.approx(slow.calibration_error(logits, labels), abs=1e-6) and found > 0.1


def test_speed_and_parameters(runs, ask, monkeypatch):
    """The median of what the group takes for a batch, and of what its leader takes, measured in turns."""
    seconds = {"Network": [9, 1, 2, 3, 1, 2, 4, 3], "OKDDip": [99, 5, 2, 4, 6, 3, 5, 4]}
    turns = []

    def timed(network, images, autocast):
        turns.append(type(network).__name__)
        return seconds[turns[-1]][turns.count(turns[-1]) - 1]

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "timed", timed)
        speed = ask(runs / "OKDDip" / "resnet8")["speed"]
    assert turns == ["Network", "OKDDip"] * 8
    assert (speed["deployed"]["images_per_second"], speed["group"]["images_per_second"]) == (16, 8)  # 32 in 2 and 4
    assert speed["deployed"]["parameters"] == sum(p.numel() for p in models.create_model("resnet8", 10).parameters())
    assert speed["group"]["parameters"] == sum(p.numel() for p in models.OKDDip("resnet8", 10).parameters())
    alone = ask(runs / "resnet8")["speed"]
    assert "group" not in alone and alone["deployed"]["images_per_second"] > 0


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


def test_no_training_image_is_needed(image_folder, ask, tmp_path):
    """Class folders with test/ alone, and under the name val/; the network's own normalisation."""
    root = image_folder(train=6, test=3)
    train.main(["--model", "resnet8", "--dataset", "folder", "--data_dir", str(root), "--batch_size", "6",
                "--num_epochs", "1", "--device", "cpu", "--save_dir", str(tmp_path)])
    run = tmp_path / "folder" / "resnet8"
    shutil.rmtree(root / "train")
    own = lines(run)[0]["test_loss"]
    assert ask(run)["figures"]["test_loss"] == own
    (root / "test").rename(root / "val")
    (root).rename(tmp_path / "elsewhere")
    assert ask(run, "--data_dir", tmp_path / "elsewhere")["figures"]["test_loss"] == own
    (tmp_path / "elsewhere" / "val" / "red").rename(tmp_path / "elsewhere" / "val" / "green")
    with pytest.raises(evaluate.UserError, match="trained on other classes.*red there, green here"):
        ask(run, "--data_dir", tmp_path / "elsewhere")


@pytest.mark.parametrize(("workers", "dataset"), [(0, "imagenet"), (2, "folder")])
def test_data_of_an_exported_file_by_its_size(workers, dataset, image_folder, ask, tmp_path, monkeypatch):
    """--data_dir alone: images of 224x224 are prepared as ImageNet's are, those of 32x32 as a folder's."""
    monkeypatch.setattr(evaluate, "timed", lambda *_: 1)
    name, large = ("resnet18", True) if dataset == "imagenet" else ("resnet8", False)
    network, root = models.create_model(name, 2).eval(), image_folder(train=0, test=3)
    (root / "test").rename(root / "val")
    torch.save({"state_dict": network.state_dict(), "model": name, "classes": ["blue", "red"], "mean": (0.5,) * 3,
                "std": (0.2,) * 3}, tmp_path / "network.pth")
    result = ask(tmp_path / "network.pth", "--data_dir", root, "--batch_size", "4", "--num_workers", workers)
    files = sorted((root / "val").rglob("*.*"))
    pixels = torch.stack([data_loader.load_image(str(file), large) for file in files])
    x = data_loader.Normalise((0.5,) * 3, (0.2,) * 3, torch.device("cpu"))(pixels)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(network(x), torch.tensor([0, 0, 0, 1, 1, 1]))
    assert result["dataset"] == dataset and result["figures"]["test_loss"] == pytest.approx(loss.item(), rel=1e-5)


# --- the authors' parameter names, as the project's design page lists them


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
def test_checkpoints_of_the_authors_code(method, prefix, more, runs, ask, tmp_path):
    ours = checkpoint(runs / method / "resnet8" / "best.pth")["state_dict"]
    theirs = {prefix + authors_name(key, method.endswith("-N")): value for key, value in ours.items()}
    torch.save({"state_dict": theirs, "epoch": 300}, tmp_path / "theirs.pth.tar")
    result = ask(tmp_path / "theirs.pth.tar", "--model", "resnet8", "--dataset", "DIGITS", "--batch_size", "32", *more)
    own = ask(runs / method / "resnet8")
    assert result["figures"] == own["figures"] and result["rows"] == own["rows"]
    assert result["speed"]["deployed"]["parameters"] == own["speed"]["deployed"]["parameters"]
    assert result["method"] == {"": "baseline", "OKDDip-N": "OKDDip", "CL-ILR": "CL"}.get(method, method)


def test_densenet_and_vgg_under_the_authors_names():
    """Branch names that other networks have: groups of three, 7 classes."""
    for name, kind in (("vgg16", models.OKDDip), ("densenetd40k12", models.Branches)):
        model = kind(name, 7, 3)
        theirs = {models.official.official_names(key, model)[-1]: value for key, value in model.state_dict().items()}
        method, group = evaluate.recognise(theirs)
        assert method == ("OKDDip" if name == "vgg16" else "Ind") and group["num_branches"] == 3
        assert not group["MulStu"] and evaluate.count_classes(theirs) == 7


# --- images


@pytest.fixture
def pictures(tmp_path):
    """A test image of the digits as PNG files of several kinds, and one large photograph-like JPEG."""
    split = data_loader.digits("").test
    grey = Image.fromarray(split.images[3]).convert("L")
    kinds = {"rgb.png": grey.convert("RGB"), "grey.png": grey, "rgba.png": grey.convert("RGBA"),
             "palette.png": grey.convert("P"),
             "large.jpg": Image.fromarray(split.images[5]).resize((700, 500), Image.Resampling.BILINEAR)}
    for name, image in kinds.items():
        image.save(tmp_path / name)
    return [tmp_path / name for name in kinds], split.images[3]


def test_the_classes_are_the_networks(runs, ask, pictures):
    files, pixels = pictures
    folder = runs / "OKDDip" / "resnet8"
    saved = checkpoint(folder / "best.pth")
    group = models.OKDDip("resnet8", 10).eval()
    group.load_state_dict(saved["state_dict"])
    x = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - torch.tensor(saved["mean"])[:, None, None])
    x = (x / torch.tensor(saved["std"])[:, None, None]).unsqueeze(0)
    with torch.no_grad():
        peers, _, leader = group(x)
    for flags, z in ((["--top", "10"], leader), (["--top", "99", "--branch", "3"], leader),
                     (["--top", "10", "--branch", "1"], peers[:, 1])):
        answers = ask(folder, "--images", *files, *flags)
        assert answers["network"] == ("peer 1" if "1" in flags else "leader")
        p = z.softmax(-1)[0]
        for image, file in zip(answers["images"], files, strict=True):
            assert image["file"] == str(file)
            found = {top["class"]: top["probability"] for top in image["top"]}
            assert sum(found.values()) == pytest.approx(1, abs=1e-5) and len(found) == 10
            if file.name != "large.jpg":  # the same pixels in four kinds of file
                assert [found[str(c)] for c in range(10)] == pytest.approx(p.tolist(), abs=1e-5)
                assert image["top"][0]["class"] == str(p.argmax().item())


def test_more_images_than_a_batch(runs, ask, pictures):
    files, _ = pictures
    whole, parts = (ask(runs / "OKDDip" / "resnet8", "--images", *files, "--batch_size", size) for size in (128, 2))
    assert [image["file"] for image in parts["images"]] == [str(file) for file in files]
    for a, b in zip(whole["images"], parts["images"], strict=True):
        assert [top["class"] for top in a["top"]] == [top["class"] for top in b["top"]]


def test_a_camera_s_orientation_is_heeded(runs, ask, pictures, tmp_path):
    image = Image.open(pictures[0][0])
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright, turned = ask(runs / "resnet8", "--images", pictures[0][0], tmp_path / "turned.png")["images"]
    assert upright["top"] == turned["top"]


def test_classes_without_names_fit_any(ask, image_folder, tmp_path):
    """A file exported from a checkpoint of the authors' code, which does not name its classes."""
    root = image_folder()
    torch.save({"state_dict": models.create_model("resnet8", 2).state_dict(), "model": "resnet8", "classes": ["0", "1"],
                "mean": [0.5] * 3, "std": [0.25] * 3}, tmp_path / "unnamed.pth")
    result = ask(tmp_path / "unnamed.pth", "--data_dir", root)
    assert result["classes"] == ["blue", "red"] and result["images"] == 14


def test_a_group_without_leader_answers_as_one(runs, pictures, capsys):
    evaluate.main([str(runs / "ONE" / "resnet8"), "--images", str(pictures[0][0]), "--top", "3", "--device", "cpu"])
    header, _, file, *tops = capsys.readouterr().out.splitlines()
    assert header.endswith(", ensemble") and file == str(pictures[0][0])
    assert len(tops) == 3 and all(re.fullmatch(r" +\d+\.\d\d %  \d", top) for top in tops)


# --- what is refused: in one line, with exit code 2


def refused(capsys, flags):
    """-> what the command says, run as a script runs it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        utils.command(lambda: evaluate.main([*map(str, flags), "--device", "cpu"]))
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == ""
    assert re.fullmatch(r"error: .+\n", printed.err)
    return printed.err


def make_files(kind, runs, group, file):
    """What a command line with a mistake in it needs."""
    tmp_path = file.parent
    if kind == "damaged":
        content = bytearray((group / "best.pth").read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    elif kind == "not an image":
        (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
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
        "other network": [file, "--model", "resnet8"],
        "the run itself": [group, "--branch", "0", "--export", group / "best.pth", "--overwrite"],
        "exported with one mean": [file, "--images", tmp_path / "black.png"],
        "exported with std 0": [file, "--images", tmp_path / "black.png"],
        "exported with a size": [file, "--images", tmp_path / "black.png"],
        "exported with NaN": [file, "--images", tmp_path / "black.png"],
        "unknown method": [file],
        "unknown data": [file],
        "bare group": [file, "--model", "resnet8"],
        "float image": [group, "--images", tmp_path / "float.tiff"],
        "says what it is": [group, "--model", "resnet14"],
        "other data": [group, "--dataset", "imagenet"],
        "exported": [file],
        "two things": [group, "--export", "x.onnx", "--images", "y.png"],
    }[kind]


@pytest.mark.parametrize(("kind", "said"), [
    ("the run itself", "belongs to a run"), ("exported with one mean", "mean.*are not three numbers"),
    ("exported with std 0", "std above 0"), ("exported with a size", "images of size 'big'"),
    ("exported with NaN", "not a number"), ("unknown method", "SCRIPTS"), ("unknown data", "no data set.*SVHN"),
    ("bare group", "bare weights of a group"), ("float image", "floating-point"),
    ("missing", "there is no checkpoint at .*nothing"), ("folder without a run", "no checkpoint at .*best.pth"),
    ("damaged", "file.pth is damaged|file.pth is not a checkpoint"), ("unknown ending", r"x.tflite .*\.safetensors"),
    ("no such folder", "no is not a folder"), ("there already", "there.onnx is there already.*--overwrite"),
    ("branch out of range", "branches 0 to 3, not 4"), ("branch of one network", "holds one network"),
    ("no leader", "group without a leader.*--branch"), ("not an image", "broken.png does not decode"),
    ("no image", "none.png does not decode"), ("other network", "not hold the weights of a resnet8.*--model"),
    ("says what it is", "its model is resnet8: leave out --model resnet14"), ("other data", "images of 32x32"),
    ("exported", "name it with --data_dir"), ("two things", "--images: not allowed with")])
def test_refusals(kind, said, runs, tmp_path, capsys):
    flags = wrong(kind, runs, tmp_path)
    error = refused(capsys, flags)
    assert re.search(said, error), error
    assert not list(tmp_path.glob("x.*")) and not list(tmp_path.glob(".*"))
    if kind == "there already":
        assert (tmp_path / "there.onnx").read_text() == "mine"


def test_a_refusal_by_the_command_itself(script, tmp_path):
    done = script("evaluate.py", tmp_path)
    assert done.returncode == 2 and re.fullmatch(r"error: there is no checkpoint at .*\n", done.stderr)


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        evaluate.main(["--help"])
    assert end.value.code == 0 and "python evaluate.py leader.onnx --images a.png b.jpg" in capsys.readouterr().out
