"""Whole trainings, by the scripts themselves."""

import json
import signal

import pytest
import torch
from image_data import same_batches
from kill import FLAGS
from processes import TINY, Training, lines, load, saved_weights

import data_loader
import models
import train
import train_GL
from runtime import checkpoints
from runtime.errors import UserError
from training import loop
from training.checkpoint import Checkpoints
from training.method import Method
from training.records import Records
from training.step import Trainer


def test_the_leader_is_a_plain_network(finished):
    group, leader = models.OKDDip("resnet8", 10).eval(), models.create_model("resnet8", 10).eval()
    group.load_state_dict(saved_weights(finished))
    leader.load_state_dict(group.student(-1).state_dict())
    images = torch.randn(4, 3, 32, 32)
    assert leader(images).allclose(group(images)[2], atol=1e-5)


def test_twice_the_same(finished, tmp_path):
    """Equal flags end in bitwise equal weights and metrics, with any --num_workers."""
    train_GL.main([*TINY, "--num_epochs", "3", "--save_dir", str(tmp_path), "--num_workers", "0"])
    again = tmp_path / "DIGITS" / "OKDDip" / "resnet8"
    assert lines(again) == lines(finished)
    assert all(value.equal(saved_weights(again)[name]) for name, value in saved_weights(finished).items())


def test_another_seed_is_another_run(finished, tmp_path):
    train_GL.main([*TINY, "--num_epochs", "1", "--save_dir", str(tmp_path), "--seed", "1"])
    assert lines(tmp_path / "DIGITS" / "OKDDip" / "resnet8")[0] != lines(finished)[0]


def test_every_epoch_shows_its_own_batches(flags, tmp_path, monkeypatch):
    """The order, crops and flips of epoch 0, then those of epoch 1, are what the loader gives for them."""
    shown, step = [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, images, labels, *rest: (
        shown.append((images.clone(), labels)), step(self, images, labels, *rest))[1])
    train.main([*FLAGS, "--num_epochs", "2", "--data_dir", flags[-1], "--save_dir", str(tmp_path), "--seed", "3"])
    loader, _ = data_loader.dataloader("folder", 8, 0, flags[-1], seed=3)
    expected = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        expected += list(loader)
    assert same_batches(shown, expected) and not same_batches(shown[:3], shown[3:])


def test_the_course_of_a_training(flags, tmp_path, monkeypatch):
    """Two epochs with held-out images and --save_steps, then a third: what is chosen, recorded, saved and printed."""
    saved, closed, modes, save, step, evaluated = [], [], [], Checkpoints.save, Trainer.step, loop.evaluate

    def note_save(self, best=False):
        saved.append((len(self.history), self.trainer.sums.steps, best))
        save(self, best)

    def note_step(self, *batch):
        modes.append(self.model.training)
        step(self, *batch)

    monkeypatch.setattr(Checkpoints, "save", note_save)
    monkeypatch.setattr(Trainer, "step", note_step)
    monkeypatch.setattr(loop, "evaluate", lambda method, images, phase, *rest: (
        modes.append(phase), evaluated(method, images, phase, *rest))[1])
    monkeypatch.setattr(Method, "after_epoch", lambda self, held_out, *rest: modes.append(held_out.num_images))
    monkeypatch.setattr(data_loader.Loader, "close", lambda self: closed.append(self.num_images))
    argv = [*FLAGS[:-2], "--device", "cpu", "--data_dir", flags[-1], "--save_dir", str(tmp_path), "--val_size", "4",
            "--save_steps", "2", "--save_every", "9", "--resume", "auto", "--num_epochs"]
    train.main([*argv, "2"])
    folder = tmp_path / "folder" / "resnet8"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary, parameters = (json.loads((folder / f"{name}.json").read_text()) for name in ("summary", "parameters"))
    assert summary["chosen_by"] == "val_accTop1" and summary["last"] == records[-1]
    assert summary["best"] == max(records, key=lambda r: (r["val_accTop1"], r["epoch"]))
    for epoch, record in enumerate(records, 1):
        assert (record["epoch"], record["weight"]) == (epoch, 1.0)
        assert record["train_loss"] == record["train_loss_true"] > 0 == record["train_loss_group"]
        assert {"train_accTop1", "val_accTop1", "test_accTop1", "val_loss", "test_loss"} <= record.keys()
        assert record["images_per_second"] * record["seconds"] >= 20 and record["images_per_second"] < 1e5
    assert modes == [True, True, True, 4, "val", "test"] * 2 and sorted(closed) == [4, 20, 24]
    bests = [records[1]["val_accTop1"] >= records[0]["val_accTop1"]]
    assert saved == [(0, 2, False), (1, 0, True), (1, 2, False), (2, 0, bests[0])]
    network = models.create_model("resnet8", 2)
    assert parameters["weights"] == sum(p.numel() for p in network.parameters()) and parameters["method"] == "baseline"
    train.main([*argv, "3"])
    parameters = json.loads((folder / "parameters.json").read_text())
    assert [(start["epoch"], start["step"]) for start in parameters["starts"]] == [(1, 0), (3, 0)]
    assert (parameters["environment"], parameters["command"]) == tuple(
        parameters["starts"][-1][name] for name in ("environment", "command"))
    first, second = (folder / "train.log").read_text().split("continues after 2 epochs and 0 steps\n")
    about = f"20 training and 24 test images, {parameters['weights']:,} weights, on cpu\n"
    assert f"{folder}: resnet8 on folder, {about}" in first
    assert "continues" not in first
    assert "learning rate 0.02, divided by 10 after each of the epochs [2], of 2 in all\n" in first
    assert f"epoch 2/2  loss {records[1]['train_loss']:.4f}  train " in first and "epoch 3/3  loss" in second
    assert "of 3 in all\n" in first and "continues" not in second and "done: best epoch" in second


def test_a_method_is_told_the_number_of_each_step_before_and_after_it(flags, tmp_path, monkeypatch):
    """Of the whole training and of the epoch, from 1. A stop within the second epoch does not change the numbers."""
    told = []

    def tell(moment):
        def note(self, step, of_epoch):
            told.append((moment, step, of_epoch, next(self.model.parameters()).sum().item()))
            if (moment, step) == ("after", 5) and len(told) == 10:
                signal.raise_signal(signal.SIGTERM)
        return note

    for moment in ("before", "after"):
        monkeypatch.setattr(Method, f"{moment}_step", tell(moment))
    argv = [*FLAGS, "--num_epochs", "2", "--data_dir", flags[-1], "--save_dir", str(tmp_path), "--resume", "auto"]
    with pytest.raises(SystemExit):
        train.main(argv)
    train.main(argv)
    assert [note[:3] for note in told] == [(moment, step, (step - 1) % 3 + 1)
                                           for step in range(1, 7) for moment in ("before", "after")]
    weights = [weight for *_, weight in told]
    assert weights[1:-1:2] == weights[2::2] and len(set(weights)) == 7


def test_a_compiled_loss_gets_its_weight_as_a_tensor(flags, tmp_path, monkeypatch):
    """A number would be compiled into it: each epoch of the ramp-up would be compiled again."""
    given, step = [], Trainer.step
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(Trainer, "step", lambda self, images, labels, weight, share: (
        given.append(type(weight)), step(self, images, labels, weight, share))[1])
    argv = [*FLAGS, "--num_epochs", "1", "--data_dir", flags[-1], "--overwrite", "--save_dir", str(tmp_path)]
    for more, kind in (([], float), (["--compile"], torch.Tensor)):
        train.main([*argv, *more])
        assert set(given) == {kind}
        given.clear()


def test_a_signal_at_the_very_end_is_told_by_the_exit_code(flags, tmp_path, monkeypatch):
    """The training is complete, and the caller learns of the signal."""
    finish = Records.finish
    monkeypatch.setattr(Records, "finish", lambda *args: (finish(*args), signal.raise_signal(signal.SIGTERM)))
    with pytest.raises(SystemExit) as end:
        train.main([*FLAGS, "--num_epochs", "1", "--data_dir", flags[-1], "--save_dir", str(tmp_path)])
    assert end.value.code == 128 + signal.SIGTERM
    assert json.loads((tmp_path / "folder" / "resnet8" / "summary.json").read_text())["last"]["epoch"] == 1
    assert "stopped by signal" not in (tmp_path / "folder" / "resnet8" / "train.log").read_text()


def test_which_epochs_are_saved(flags, tmp_path, monkeypatch):
    """The best one (here the first), every third, and the last. The method's advice is about the last."""
    saved, advised, save = [], [], Checkpoints.save

    def note_save(self, best=False):
        saved.append((len(self.history), best))
        save(self, best)

    monkeypatch.setattr(Checkpoints, "best", lambda self: self.history[0])
    monkeypatch.setattr(Method, "advice", lambda self, record: advised.append(record["epoch"]))
    monkeypatch.setattr(Checkpoints, "save", note_save)
    train.main([*FLAGS, "--num_epochs", "4", "--save_every", "3", "--data_dir", flags[-1], "--save_dir", str(tmp_path)])
    assert saved == [(1, True), (3, False), (4, False)] and advised == [4]
    folder = tmp_path / "folder" / "resnet8"
    assert len(load(folder)["history"]) == len(lines(folder)) == 4


def test_overwrite_replaces_the_run_and_nothing_else(tmp_path):
    folder = tmp_path / "DIGITS" / "resnet8"
    train.main([*TINY, "--num_epochs", "2", "--save_dir", str(tmp_path)])
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        train.main([*TINY, "--num_epochs", "1", "--save_dir", str(tmp_path)])
    assert len(lines(folder)) == 2
    train.main([*TINY, "--num_epochs", "1", "--save_dir", str(tmp_path), "--overwrite"])
    assert len(lines(folder)) == 1 and (folder / "notes.txt").read_text() == "mine"
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(flags, begun):
    """Weights so large that the next step's loss overflows."""
    state = load(begun)
    for weight in state["state_dict"].values():
        if weight.is_floating_point():
            weight.fill_(1e30)
    del state["digest"]
    good = checkpoints.serialise(state)
    (begun / "last.pth").write_bytes(good)
    training = Training("train_GL", [*flags, "--resume", begun], begun.parents[2])
    assert training.wait() == 2
    assert "the training diverged" in training.said() and "epoch 2, between steps 1 and" in training.said()
    assert "Traceback" not in training.said() and (begun / "last.pth").read_bytes() == good


def test_diverging_at_once_leaves_no_checkpoint(flags, tmp_path):
    with pytest.raises(UserError, match="diverged"):
        train.main([*FLAGS, "--num_epochs", "2", "--data_dir", flags[-1], "--lr", "1e30", "--save_dir", str(tmp_path)])
    folder = tmp_path / "folder" / "resnet8"
    assert not (folder / "last.pth").exists() and json.loads((folder / "parameters.json").read_text())["lr"] == 1e30
