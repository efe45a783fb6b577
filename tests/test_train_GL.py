"""The experiments of the paper behind flags of train_GL.py, run on the digits."""

import json
import re

import pytest
import torch
from conftest import few_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import models
import train
import train_DML
import train_GL
import train_one
from analysis.records import find_runs
from runtime.errors import Complete, UserError
from training import loop

TINY = ["--model", "resnet8", "--dataset", "DIGITS", "--batch_size", "64", "--num_epochs", "1", "--device", "cpu"]


@pytest.fixture(autouse=True, scope="module")
def quick():
    with few_digits():
        yield


def run(script, tmp_path, *flags):
    """-> the run's folder and the JSON line of its only epoch."""
    script.main([*TINY, "--save_dir", str(tmp_path), *flags])
    (folder,) = (p.parent for p in tmp_path.glob("DIGITS/*/resnet8/last.pth"))
    return folder, json.loads((folder / "metrics.jsonl").read_text())


@pytest.mark.parametrize("aggregation", [a for a in models.AGGREGATIONS if a != "attention"])
def test_aggregation(aggregation, tmp_path):
    """Table 5: each is a run of its own, and records its attention."""
    folder, record = run(train_GL, tmp_path, "--aggregation", aggregation)
    assert folder.parent.name == f"OKDDip-{aggregation}"
    assert [sum(row) for row in record["attention"]] == pytest.approx([1] * 3)
    if aggregation in ("mean", "random"):
        assert sum(record["attention"], []) == pytest.approx([1 / 3] * 9)
    if aggregation == "others":
        assert [record["attention"][a][a] for a in range(3)] == [0] * 3
    if aggregation == "entropy":
        assert record["attention"][0] == pytest.approx(record["attention"][1])


@pytest.mark.parametrize(("flags", "method"), [
    (["--train_size", "100"], "OKDDip"), (["--aggregation", "others"], "OKDDip-others"),
    (["--detach_targets"], "OKDDip-detach_targets")])
def test_flags_that_are_not_in_the_paper(flags, method, tmp_path, capsys):
    """One epoch and another one, resumed, are two in one go; evaluate.py finds the metrics of the run."""
    flags, runs = [*flags, "--schedule", "5"], []
    for name, epochs in (("whole", "2"), ("begun", "1")):
        train_GL.main([*TINY, *flags, "--num_epochs", epochs, "--save_dir", str(tmp_path / name)])
        runs.append(tmp_path / name / "DIGITS" / method / "resnet8")
    first = torch.load(runs[1] / "last.pth", weights_only=True)["state_dict"]
    train_GL.main([*TINY, *flags, "--num_epochs", "2", "--resume", str(runs[1])])
    whole, resumed = (torch.load(folder / "last.pth", weights_only=True) for folder in runs)
    assert all(value.equal(resumed["state_dict"][name]) for name, value in whole["state_dict"].items())
    for name in ("aggregation.W_L.weight", "aggregation.W_E.weight"):
        assert first[name].equal(resumed["state_dict"][name]) == (method == "OKDDip-detach_targets")
    parameters = json.loads((runs[0] / "parameters.json").read_text())
    assert parameters["train_size"] == whole["flags"]["train_size"] == (100 if "--train_size" in flags else 0)
    assert parameters["detach_targets"] == ("--detach_targets" in flags)
    assert f"{parameters['train_size'] or 128} training and 60 test images" in (runs[0] / "train.log").read_text()
    capsys.readouterr()
    evaluate.main([str(runs[1]), "--json", "--device", "cpu"])
    best = json.loads((runs[1] / "test_best_metrics.json").read_text())
    metrics = json.loads(capsys.readouterr().out)["figures"]
    assert {name: best[name] for name in metrics if name in best}.items() <= metrics.items() and "dist" in metrics


def test_other_train_size_is_not_resumed(tmp_path):
    folder, _ = run(train_GL, tmp_path, "--train_size", "100")
    with pytest.raises(UserError, match="--train_size 100 there, 0 here"):
        train_GL.main([*TINY, "--num_epochs", "2", "--resume", str(folder)])


def test_no_leader(tmp_path):
    """Table 4: four peers, no leader; the ensemble is deployed, and chooses the best epoch."""
    folder, record = run(train_GL, tmp_path, "--no_leader")
    assert folder.parent.name == "OKDDip-no_leader" and not (folder / "B").exists()
    assert {f"stu{i}test_accTop1" for i in range(4)} < record.keys() and "stu_test_accTop1" not in record
    assert len(record["attention"]) == 4
    assert json.loads((folder / "summary.json").read_text())["chosen_by"] == "test_accTop1"


@pytest.mark.parametrize("script", [train_GL, train_one, train_DML])
def test_choose_by_the_ensemble(script, tmp_path):
    folder, record = run(script, tmp_path, "--choose_E")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == {"chosen_by": "test_accTop1", "best": record, "last": record}


def test_with_a_teacher(tmp_path):
    """Table 6: the teacher's term comes on top of L_true + alpha w L_group."""
    train.main([*TINY, "--save_dir", str(tmp_path)])
    folder, record = run(train_GL, tmp_path, "--T_model", "resnet8")
    assert folder.parent.name == "OKDDip+KD"
    terms = record["train_loss_true"] + record["weight"] * record["train_loss_group"] + record["train_loss_teacher"]
    assert record["train_loss"] == pytest.approx(terms, rel=1e-5) and record["train_loss_teacher"] > 1e-3
    names = torch.load(folder / "last.pth", weights_only=True)["state_dict"].keys()
    assert names == models.OKDDip("resnet8", 10).state_dict().keys()  # no teacher in there


def test_held_out_images_choose_the_epoch(tmp_path):
    folder, record = run(train_GL, tmp_path, "--val_size", "30")
    assert json.loads((folder / "summary.json").read_text())["chosen_by"] == "stu_val_accTop1"
    correct = record["stu_val_accTop1"] * 0.3
    assert correct == pytest.approx(round(correct), abs=1e-9)
    assert "98 training and 60 test images" in (folder / "train.log").read_text()


def test_the_best_on_held_out_images_need_not_be_the_best_on_test_images(tmp_path, monkeypatch):
    """The test chooses the accuracies: held-out images prefer epoch 1, test images epoch 2."""
    real, chosen = loop.evaluate, iter([("val", 90.0), ("test", 50.0), ("val", 80.0), ("test", 60.0)])

    def evaluate(method, loader, phase, *args):
        expected, value = next(chosen)
        assert phase == expected
        return real(method, loader, phase, *args) | {f"stu_{phase}_accTop1": value}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    train_GL.main([*TINY, "--save_dir", str(tmp_path), "--val_size", "30", "--num_epochs", "2"])
    summary = json.loads((tmp_path / "DIGITS" / "OKDDip" / "resnet8" / "summary.json").read_text())
    assert summary["best"]["epoch"] == 1 and summary["best"]["stu_test_accTop1"] == 50
    assert summary["last"]["epoch"] == 2 and summary["last"]["stu_test_accTop1"] == 60


def test_attention_and_diversity_are_drawn(tmp_path):
    """Figure 4's diversity and the mean alpha_aa as curves, the matrix as an image whose grey levels are its values."""
    import io

    import numpy as np
    from PIL import Image

    folder, record = run(train_GL, tmp_path)
    events = EventAccumulator(str(folder)).Reload()
    assert events.Scalars("Dist")[0].value == pytest.approx(record["dist"], rel=1e-6)
    assert record["attention_self"] == pytest.approx(sum(record["attention"][a][a] for a in range(3)) / 3, abs=1e-12)
    assert events.Scalars("Attention_self")[0].value == pytest.approx(record["attention_self"], rel=1e-6)
    picture = np.asarray(Image.open(io.BytesIO(events.Images("Attention")[0].encoded_image_string)).convert("L"))
    assert picture.shape == (96, 96)
    assert picture[16::32, 16::32] / 255 == pytest.approx(np.array(record["attention"]), abs=0.005)


@pytest.mark.parametrize(("itself", "flags", "said"), [
    (0.91, [], "--aggregation others or --detach_targets changes this"),
    (0.91, ["--detach_targets"], "--aggregation others changes this"),
    (0.9, [], None),
    (None, [], None),  # not a finite number
    (1.0, ["--num_branches", "2"], None)])  # a lone peer
def test_peers_that_attend_to_themselves(itself, flags, said):
    """A warning that gives alpha_aa and the flags which change it."""
    method = train_GL.OKDDip(train_GL.parse_args([*TINY, *flags]), 10)
    p = method.args.num_branches - 1
    advice = method.advice({"attention_self": itself, "attention": [[itself and 1 / p] * p] * p})
    assert (advice is None) == (said is None)
    assert advice is None or said in advice and "is 0.91" in advice


def test_a_run_ends_with_the_warning(tmp_path, monkeypatch):
    """The test chooses weights near the diagonal. A run with trained weights is in results/study."""
    near_one = torch.full((3, 3), 0.02) + 0.94 * torch.eye(3)
    monkeypatch.setattr(models.aggregation.Attention, "forward", lambda self, h, z: near_one.expand(len(h), 3, 3))
    folder, record = run(train_GL, tmp_path, "--detach_targets")
    assert record["attention_self"] == pytest.approx(0.96)
    *_, table, last = (folder / "train.log").read_text().splitlines()
    assert table.startswith("diversity") and "warning: the peers attend to themselves" in last and "0.96" in last


def test_a_run_whose_outputs_are_not_finite_in_the_end(tmp_path, monkeypatch, capsys):
    """All steps were fine, the test is not. The run ends and can be evaluated; a report leaves it out."""
    attend = models.OKDDip.attend

    def not_finite(self, images):
        return [part * float("nan") for part in attend(self, images)]

    monkeypatch.setattr(models.OKDDip, "attend", lambda self, images: (attend if self.training else not_finite)(
        self, images))
    folder, record = run(train_GL, tmp_path)
    assert record["attention_self"] is record["dist"] is record["test_loss"] is None
    assert record["attention"] == [[None] * 3] * 3
    assert "recorded as null" in (folder / "train.log").read_text() and (folder / "summary.json").exists()
    capsys.readouterr()
    evaluate.main([str(folder), "--device", "cpu"])
    evaluate.main([str(folder), "--device", "cpu", "--json"])
    assert '"attention_self": null' in capsys.readouterr().out
    with pytest.raises(Complete):
        train_GL.main([*TINY, "--resume", str(folder)])
    (left_out,) = find_runs([tmp_path])[1]
    assert re.search("is left out: (its attention|attention_self|dist)", left_out)


def test_counters_of_batches_are_right(tmp_path):
    """BatchNorm does not count in forward; a checkpoint says how many batches it has seen."""
    folder, _ = run(train_GL, tmp_path)
    weights = torch.load(folder / "last.pth", weights_only=True)["state_dict"]
    counters = {int(v) for k, v in weights.items() if k.endswith("num_batches_tracked")}
    assert counters == {2}  # 128 images in batches of 64
