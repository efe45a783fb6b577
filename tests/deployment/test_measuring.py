"""Metrics of evaluate.py: the formulas, the data that is read, the precision of the run; speed; all of it as text."""

import json
import math

import numpy as np
import pytest
import slow
import torch
from conftest import few_digits
from PIL import Image

import data_loader
import models
import train_GL
from deployment import measuring
from deployment.classifying import classify
from deployment.measuring import calibration_and_class_sums, measure, name_calibration_and_classes
from deployment.reading import read
from training.metrics import in_rows, topk_correct

CPU = torch.device("cpu")


def measured(path, **flags):
    return measure(read(path, **flags), CPU)


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
    method, batches = read(folder).method, [*data_loader.dataloader("DIGITS", 32)[1]]
    with torch.no_grad():
        z = torch.cat([in_rows(method.predict(images)[0], method.outputs) for images, _ in batches])
    labels = torch.cat([y for _, y in batches]).tolist()
    z, result = z.double().transpose(0, 1).tolist(), measured(folder)
    metrics = result["metrics"]
    for output, own in zip(result["rows"], z, strict=True):
        nll = sum(slow.cross_entropy(image, y) for image, y in zip(own, labels, strict=True)) / len(labels)
        assert metrics[f"{output}test_loss"] == pytest.approx(nll, rel=1e-5)
        assert metrics[f"{output}test_ece"] == pytest.approx(slow.calibration_error(own, labels), abs=1e-5)
        by_class = [slow.accuracy_of_class(own, labels, c) for c in range(10)]
        assert metrics[f"{output}test_accPerClass"] == pytest.approx(by_class)


SURE, UNSURE = [math.log(0.9), math.log(0.1)], [math.log(0.4), math.log(0.6)]


@pytest.mark.parametrize(("logits", "labels", "ece", "by_class"), [
    # four images at confidence 0.9, three of them right; one at 0.6, wrong: 0.8 |0.75 - 0.9| + 0.2 |0 - 0.6|
    ([SURE, SURE, SURE, SURE, UNSURE], [0, 0, 0, 1, 0], 0.8 * 0.15 + 0.2 * 0.6, [75, 0]),
    # confidence 1 is in the last bin; a class without images has no accuracy
    ([[0.0, 200.0, 0.0]] * 4, [1, 1, 0, 1], 0.25, [0, 100, None])])
def test_known_calibration_errors(logits, labels, ece, by_class):
    """Of one network, from the sums of batches of three."""
    z, y = torch.tensor(logits).unsqueeze(1), torch.tensor(labels)
    sums = [calibration_and_class_sums(z.log_softmax(-1), topk_correct(z, y)[..., 0], y)
            for z, y in zip(z.split(3), y.split(3), strict=True)]
    means = {name: (sum(s[name] for s in sums) / len(y)).tolist() for name in sums[0]}
    metrics = name_calibration_and_classes(means, {"": "network"})
    assert metrics["test_ece"] == pytest.approx(ece) and metrics["test_accPerClass"] == pytest.approx(by_class)


# --- speed


def test_speed_and_parameters(runs, monkeypatch):
    """The median time of a batch, of the leader and of the group in turns. The first time of each is a warm-up."""
    seconds = iter([9, 99, 1, 5, 2, 2, 3, 4, 1, 6, 2, 3, 4, 5, 3, 4])
    monkeypatch.setattr(measuring, "timed", lambda *_: next(seconds, 1))
    found = measuring.measure_speed(read(runs / "OKDDip" / "resnet8"), "stu_", 32, CPU)
    networks = {"deployed": models.create_model("resnet8", 10), "group": models.OKDDip("resnet8", 10)}
    for (name, network), speed in zip(networks.items(), (16, 8), strict=True):  # 32 images in 2 and in 4 s
        assert found[name] == {"images_per_second": speed, "parameters": sum(p.numel() for p in network.parameters())}
    assert "group" not in measuring.measure_speed(read(runs / "resnet8"), "", 32, CPU)


# --- as text. tests/test_evaluate.py compares the table of a run with its metrics


def test_a_group_as_text(runs, monkeypatch):
    """Without a leader; with a chosen student, which stands beside the ensemble; with many classes."""
    monkeypatch.setattr(measuring, "timed", lambda *_: 1)
    result, speed = measured(runs / "Ind" / "resnet8"), {"images_per_second": 1234.5, "parameters": 5678}
    result["speed"] |= {"deployed": speed, "group": speed}
    result["metrics"]["test_accPerClass"][0] = None
    words = [line.split() for line in measuring.as_text(result).splitlines()]
    assert words[0][1:] == "Ind, resnet8, epoch 1; 60 test images of DIGITS, on cpu".split()
    assert ["mean", "of", "the", "students", *(f"{result['metrics'][f'mean_test_acc{k}']:.2f}" for k in (
        "Top1", "Top5"))] in words
    assert ["top-1", "by", "class", "ensemble"] in words and ["0", "-"] in words  # a class without images
    assert ["one", "student", "1,234", "5,678"] in words and ["the", "group", "1,234", "5,678"] in words
    words = [line.split() for line in measuring.as_text(result | {"deployed": "stu1"}).splitlines()]
    by_class = [f"{result['metrics'][f'{output}test_accPerClass'][9]:.2f}" for output in ("stu1", "")]
    assert ["top-1", "by", "class", "student", "1", "ensemble"] in words and ["9", *by_class] in words
    text = measuring.as_text(result | {"classes": [f"class {c}" for c in range(101)]})
    assert "top-1 of each of the 101 classes: --json" in text and "class 5" not in text
