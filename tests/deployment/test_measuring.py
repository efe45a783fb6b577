"""Metrics of evaluate.py: the formulas, the data that is read, the precision of the run; speed; all of it as text."""

import json
import math
import shutil

import numpy as np
import pytest
import slow
import torch
from conftest import few_digits
from PIL import Image

import data_loader
import models
import train
import train_GL
from deployment import measuring
from deployment.classifying import classify
from deployment.measuring import calibration_and_class_sums, measure, name_calibration_and_classes
from deployment.reading import read
from runtime.errors import UserError
from training.metrics import in_rows, topk_correct

CPU = torch.device("cpu")


def measured(path, **flags):
    return measure(read(path, **flags), CPU)


def logits_and_labels(folder):
    """Of a run's best.pth on the test images: logits [N, R, C] in the order of the outputs, labels [N]."""
    method = read(folder).method
    loader = data_loader.dataloader("DIGITS", 32)[1]
    with torch.no_grad():
        batches = [(in_rows(method.predict(images)[0], method.outputs), labels) for images, labels in loader]
    return torch.cat([z for z, _ in batches]), torch.cat([y for _, y in batches])


def test_half_precision_is_measured_as_the_run_did(tmp_path):
    Image.fromarray(data_loader.digits("").test.images[3]).save(tmp_path / "x.png")
    with few_digits():
        train_GL.main(["--model", "resnet8", "--dataset", "DIGITS", "--num_epochs", "1", "--batch_size", "64", "--amp",
                       "bf16", "--device", "cpu", "--save_dir", str(tmp_path)])
        folder = tmp_path / "DIGITS" / "OKDDip" / "resnet8"
        metrics, record = measured(folder)["metrics"], json.loads((folder / "test_best_metrics.json").read_text())
        (image,) = classify(read(folder), [str(tmp_path / "x.png")], CPU)["images"]
    assert record["stu_test_loss"] == metrics["stu_test_loss"] and record["attention"] == metrics["attention"]
    assert np.array(record["attention"]).sum(1) == pytest.approx([1] * 3, abs=2e-3)  # each weight has 8 bits
    logits = [math.log(top["probability"]) for top in image["top"]]
    assert len(logits) == 5 and logits == sorted(logits, reverse=True)


def test_metrics_by_the_formulas(runs):
    folder = runs / "OKDDip" / "resnet8"
    z, labels = logits_and_labels(folder)
    z, labels, result = z.double().transpose(0, 1).tolist(), labels.tolist(), measured(folder)
    metrics = result["metrics"]
    for output, own in zip(result["rows"], z, strict=True):
        nll = sum(slow.cross_entropy(image, y) for image, y in zip(own, labels, strict=True)) / len(labels)
        assert metrics[f"{output}test_loss"] == pytest.approx(nll, rel=1e-5)
        assert metrics[f"{output}test_ece"] == pytest.approx(slow.calibration_error(own, labels), abs=1e-5)
        by_class = [slow.accuracy_of_class(own, labels, c) for c in range(10)]
        assert metrics[f"{output}test_accPerClass"] == pytest.approx(by_class)


def calibration_and_classes(logits, labels, batch_size):
    """Calibration error and accuracy per class of one network, from the sums of its batches."""
    logits, labels = torch.tensor(logits, dtype=torch.float32).unsqueeze(1), torch.tensor(labels)
    sums = [calibration_and_class_sums(z.log_softmax(-1), topk_correct(z, y)[..., 0], y)
            for z, y in zip(logits.split(batch_size), labels.split(batch_size), strict=True)]
    means = {name: (sum(s[name] for s in sums) / len(labels)).tolist() for name in sums[0]}
    return name_calibration_and_classes(means, {"": "network"})


def test_a_known_calibration_error():
    """Four images at confidence 0.9, three of them right; one at 0.6, wrong: 0.8 |0.75 - 0.9| + 0.2 |0 - 0.6|."""
    sure, unsure = [math.log(0.9), math.log(0.1)], [math.log(0.4), math.log(0.6)]
    metrics = calibration_and_classes([sure, sure, sure, sure, unsure], [0, 0, 0, 1, 0], 3)
    assert metrics["test_ece"] == pytest.approx(0.8 * 0.15 + 0.2 * 0.6)
    assert metrics["test_accPerClass"] == pytest.approx([75, 0])


def test_confidence_1_is_in_the_last_bin():
    """And a class without images has no accuracy."""
    metrics = calibration_and_classes([[0.0, 200.0, 0.0]] * 4, [1, 1, 0, 1], 3)
    assert metrics["test_ece"] == pytest.approx(0.25)
    assert metrics["test_accPerClass"] == [0, 100, None]


def test_no_training_image_is_needed(image_folder, tmp_path):
    """Class folders with test/ alone, and with the name val/. The network's own normalisation is used."""
    root = image_folder(train=6, test=3)
    train.main(["--model", "resnet8", "--dataset", "folder", "--data_dir", str(root), "--batch_size", "6",
                "--num_epochs", "1", "--device", "cpu", "--save_dir", str(tmp_path)])
    run = tmp_path / "folder" / "resnet8"
    shutil.rmtree(root / "train")
    own = json.loads((run / "metrics.jsonl").read_text())["test_loss"]
    assert measured(run)["metrics"]["test_loss"] == own
    (root / "test").rename(root / "val")
    root.rename(tmp_path / "elsewhere")
    assert measured(run, data_dir=tmp_path / "elsewhere")["metrics"]["test_loss"] == own
    (tmp_path / "elsewhere" / "val" / "red").rename(tmp_path / "elsewhere" / "val" / "green")
    with pytest.raises(UserError, match="trained on other classes.*red there, green here"):
        measured(run, data_dir=tmp_path / "elsewhere")


def test_classes_without_names_fit_any_names(image_folder, tmp_path):
    """A file exported from a checkpoint of the authors' code, which does not name its classes."""
    root = image_folder()
    torch.save({"state_dict": models.create_model("resnet8", 2).state_dict(), "model": "resnet8", "classes": ["0", "1"],
                "mean": [0.5] * 3, "std": [0.25] * 3}, tmp_path / "unnamed.pth")
    result = measured(tmp_path / "unnamed.pth", data_dir=root)
    assert result["classes"] == ["blue", "red"] and result["images"] == 14


# --- speed


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_speed_and_parameters(runs, monkeypatch):
    """The median time of the group and of its leader for a batch, measured in turns."""
    seconds = {"Network": [9, 1, 2, 3, 1, 2, 4, 3], "OKDDip": [99, 5, 2, 4, 6, 3, 5, 4]}
    turns = []

    def timed(network, images, autocast):
        turns.append(type(network).__name__)
        return seconds[turns[-1]][turns.count(turns[-1]) - 1]

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "timed", timed)
        found = measuring.measure_speed(read(runs / "OKDDip" / "resnet8"), "stu_", 32, CPU)
    assert turns == ["Network", "OKDDip"] * 8
    assert (found["deployed"]["images_per_second"], found["group"]["images_per_second"]) == (16, 8)  # 32 in 2 and 4
    assert found["deployed"]["parameters"] == parameters(models.create_model("resnet8", 10))
    assert found["group"]["parameters"] == parameters(models.OKDDip("resnet8", 10))
    alone = measuring.measure_speed(read(runs / "resnet8"), "", 32, CPU)
    assert "group" not in alone and alone["deployed"]["images_per_second"] > 0


# --- as text. tests/test_evaluate.py compares the table of a run with its metrics


def made_up(classes, deployed=None):
    """A result of ``measure`` for a group of two students."""
    outputs = {"stu0": "student 0", "stu1": "student 1", "": "ensemble"}
    metrics = {f"{output}test_{name}": 50.0 for output in [*outputs, "mean_"]
               for name in ("accTop1", "accTop5", "loss", "ece")}
    metrics |= {f"{output}test_accPerClass": [None, *[25.0] * (len(classes) - 1)] for output in outputs}
    speed = {"images_per_second": 1234.5, "parameters": 5678}
    return {"file": "best.pth", "epoch": None, "method": "Ind", "model": "resnet8", "dataset": "DIGITS", "images": 1000,
            "classes": classes, "device": "cpu", "rows": outputs, "deployed": deployed, "metrics": metrics,
            "speed": {"batch_size": 32, "deployed": speed, "group": speed}}


def test_a_group_as_text():
    """Without a leader; with a chosen student, which stands beside the ensemble; with many classes."""
    lines = measuring.as_text(made_up(["cat", "dog"])).splitlines()
    assert lines[0] == "best.pth: Ind, resnet8; 1,000 test images of DIGITS, on cpu"
    words = [line.split() for line in lines]
    assert ["mean", "of", "the", "students", "50.00", "50.00"] in words
    assert ["top-1", "by", "class", "ensemble"] in words
    assert ["cat", "-"] in words and ["dog", "25.00"] in words  # a class without images has no accuracy
    assert ["one", "student", "1,234", "5,678"] in words and ["the", "group", "1,234", "5,678"] in words
    words = [line.split() for line in measuring.as_text(made_up(["cat", "dog"], "stu1")).splitlines()]
    assert ["top-1", "by", "class", "student", "1", "ensemble"] in words and ["dog", "25.00", "25.00"] in words
    text = measuring.as_text(made_up([f"class {c}" for c in range(101)]))
    assert "top-1 of each of the 101 classes: --json" in text and "class 5" not in text
