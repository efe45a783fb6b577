"""A run's folder and checkpoints, by the scripts themselves on the digits."""

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import models
import train
import train_GL
from runtime import checkpoints
from runtime.errors import UserError
from training.folder import FILES

TINY = ["--model", "resnet8", "--dataset", "DIGITS", "--batch_size", "512", "--schedule", "3", "--device", "cpu"]


def weights(folder, name="last.pth"):
    return torch.load(folder / name, weights_only=True)["state_dict"]


def lines(folder):
    """The JSON lines without what depends on the clock."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in records]


def curve(folder, tag):
    events = EventAccumulator(str(folder)).Reload()
    return [(e.step, e.value) for e in events.Scalars(tag)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Three epochs of OKDDip in one go."""
    root = tmp_path_factory.mktemp("finished")
    train_GL.main([*TINY, "--num_epochs", "3", "--save_dir", str(root)])
    return root / "DIGITS" / "OKDDip" / "resnet8"


def test_files(finished):
    assert {f.name for f in finished.iterdir() if "tfevents" not in f.name} == {*FILES, "B", "lock"}
    assert weights(finished).keys() == models.OKDDip("resnet8", 10).state_dict().keys()


def test_parameters(finished):
    parameters = json.loads((finished / "parameters.json").read_text())
    assert parameters["num_branches"] == 4 and parameters["milestones"] == [3] and parameters["method"] == "OKDDip"
    assert parameters["classes"] == [str(i) for i in range(10)] and len(parameters["mean"]) == 3
    assert parameters["environment"].keys() == {"revision", "python", "torch", "torchvision", "numpy", "device",
                                                "processes"}


def test_json_lines(finished):
    records = lines(finished)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    rows = ("stu0", "stu1", "stu2", "stu_", "", "mean_")
    for record in records:
        for phase in ("train", "test"):
            assert all(0 <= record[f"{row}{phase}_accTop1"] <= record[f"{row}{phase}_accTop5"] <= 100 for row in rows)
        images = record["stu_test_accTop1"] * 3.6
        assert images == pytest.approx(round(images), abs=1e-9)  # of 360 images, each counted once
        assert 0 <= record["dist"] <= 2**0.5
        assert [sum(row) for row in record["attention"]] == pytest.approx([1] * 3)
        assert record["train_loss"] == pytest.approx(
            record["train_loss_true"] + record["weight"] * record["train_loss_group"], rel=1e-5)
    assert [record["lr"] for record in records] == [0.1] * 3


def test_best(finished):
    best = json.loads((finished / "test_best_metrics.json").read_text())
    top = max(record["stu_test_accTop1"] for record in lines(finished))
    assert best["stu_test_accTop1"] == top
    assert best["epoch"] == max(r["epoch"] for r in lines(finished) if r["stu_test_accTop1"] == top)
    assert torch.load(finished / "best.pth", weights_only=True)["history"][-1] == best


def test_curves(finished):
    """Test/AccTop1 is the ensemble's, and the leader's in the sub-folder B."""
    for folder, name in ((finished, "test_accTop1"), (finished / "B", "stu_test_accTop1")):
        expected = [(record["epoch"], pytest.approx(record[name], rel=1e-6)) for record in lines(finished)]
        assert curve(folder, "Test/AccTop1") == expected
    assert len(curve(finished, "Dist")) == len(curve(finished, "Test/stu0AccTop1")) == 3


def test_the_leader_is_a_plain_network(finished):
    group, leader = models.OKDDip("resnet8", 10).eval(), models.create_model("resnet8", 10).eval()
    group.load_state_dict(weights(finished))
    leader.load_state_dict(group.student(-1).state_dict())
    images = torch.randn(4, 3, 32, 32)
    assert leader(images).allclose(group(images)[2], atol=1e-5)


def test_twice_the_same(finished, tmp_path):
    """Equal flags end in bitwise equal weights and figures, with any --num_workers."""
    train_GL.main([*TINY, "--num_epochs", "3", "--save_dir", str(tmp_path), "--num_workers", "0"])
    again = tmp_path / "DIGITS" / "OKDDip" / "resnet8"
    assert lines(again) == lines(finished)
    assert all(value.equal(weights(again)[name]) for name, value in weights(finished).items())


def test_another_seed_is_another_run(finished, tmp_path):
    train_GL.main([*TINY, "--num_epochs", "1", "--save_dir", str(tmp_path), "--seed", "1"])
    assert lines(tmp_path / "DIGITS" / "OKDDip" / "resnet8")[0] != lines(finished)[0]


def test_resume_continues_where_the_run_stopped(finished, tmp_path):
    """One epoch, then two more: the weights, figures and curves of three in one go."""
    train_GL.main([*TINY, "--num_epochs", "1", "--save_dir", str(tmp_path)])
    folder = tmp_path / "DIGITS" / "OKDDip" / "resnet8"
    train_GL.main([*TINY, "--num_epochs", "3", "--resume", str(folder)])
    assert all(value.equal(weights(folder)[name]) for name, value in weights(finished).items())
    assert lines(folder) == lines(finished)
    assert curve(folder, "Test/AccTop1") == curve(finished, "Test/AccTop1")


def test_raising_num_epochs_keeps_the_first_schedule(tmp_path):
    flags = [f for f in TINY if f not in ("--schedule", "3")]
    train.main([*flags, "--num_epochs", "2", "--save_dir", str(tmp_path)])
    folder = tmp_path / "DIGITS" / "resnet8"
    train.main([*flags, "--num_epochs", "3", "--resume", str(folder / "last.pth")])
    assert [record["lr"] for record in lines(folder)] == pytest.approx([0.1, 0.01, 0.001])  # milestones 1 2, not 2 3


@pytest.mark.parametrize(("flags", "said"), [(["--lr", "0.2"], "--lr 0.1 there, 0.2 here"),
                                             (["--num_branches", "3"], "--num_branches 4 there, 3 here")])
def test_resuming_with_other_flags_is_refused(finished, flags, said):
    before = (finished / "last.pth").read_bytes()
    with pytest.raises(UserError, match=said):
        train_GL.main([*TINY, *flags, "--num_epochs", "4", "--resume", str(finished)])
    with pytest.raises(UserError, match="--method OKDDip there"):
        train.main([*TINY, "--num_epochs", "4", "--resume", str(finished)])
    assert (finished / "last.pth").read_bytes() == before


def test_a_checkpoint_from_before_a_flag_was_there(tmp_path):
    """It is continued as if it named the flag's default, and with nothing else."""
    flags = [*TINY, "--train_size", "0"]
    train_GL.main([*flags, "--num_epochs", "1", "--save_dir", str(tmp_path)])
    folder = tmp_path / "DIGITS" / "OKDDip" / "resnet8"
    state = checkpoints.load_checkpoint(folder / "last.pth")
    assert state["flags"].pop("train_size") == 0 and state["flags"].pop("detach_targets") is False
    (folder / "last.pth").write_bytes(checkpoints.serialise(state))
    for other, said in ((["--train_size", "500"], "--train_size 0 there, 500 here"),
                        (["--detach_targets"], "--detach_targets False there, True here")):
        with pytest.raises(UserError, match=said):
            train_GL.main([*flags, *other, "--num_epochs", "2", "--resume", str(folder)])
    evaluate.main([str(folder / "last.pth"), "--device", "cpu"])
    train_GL.main([*flags, "--num_epochs", "2", "--resume", str(folder)])
    assert len(lines(folder)) == 2
    assert checkpoints.load_checkpoint(folder / "last.pth")["flags"]["train_size"] == 0


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
