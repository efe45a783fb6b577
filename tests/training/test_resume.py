"""--resume: continue a run, with the same bits as without a stop, or say why not."""

import json
import shutil
from argparse import Namespace

import pytest
import torch
from kill import FLAGS, make_images
from PIL import Image
from processes import TINY, Training, assert_same_run, curve, epochs, lines, load, saved_weights

import evaluate
import models
import train
import train_GL
from analysis.records import find_runs
from losses import ramp_up
from runtime import checkpoints
from runtime.errors import Complete, UserError
from training.checkpoint import FORMAT
from training.resume import checkpoint_to_resume, is_finished, load_to_resume


def test_auto_starts_continues_and_leaves_a_complete_run_alone(flags, whole, tmp_path, capsys):
    flags = [*flags, "--save_dir", str(tmp_path), "--resume", "auto"]
    folder = tmp_path / "folder" / "OKDDip" / "resnet8"
    torch.set_num_threads(1)
    train_GL.main([*flags, "--num_epochs", "1"])
    (folder / "summary.json").unlink()  # as if it had been killed just before
    train_GL.main([*flags, "--num_epochs", "1"])
    assert (folder / "summary.json").exists() and epochs(folder) == 1
    (folder / "summary.json").unlink()
    state = load(folder)
    state["recipe"]["num_epochs"] = 4  # of the first start, on which ramp-up and schedule rest
    del state["digest"]
    (folder / "last.pth").write_bytes(checkpoints.serialise(state))
    train_GL.main(flags)
    assert_same_run(folder, whole)
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    with pytest.raises(Complete, match="is complete: 4 epochs"):
        train_GL.main(flags)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    training = Training("train_GL", flags, tmp_path)
    assert training.wait() == 0 and "is complete" in training.said()


def test_auto_does_not_pass_over_a_damaged_checkpoint(flags, begun):
    (begun / "last.pth").write_bytes((begun / "last.pth").read_bytes()[:-1000])
    with pytest.raises(UserError, match="last.pth is not a checkpoint"):
        train_GL.main([*flags, "--save_dir", str(begun.parents[2]), "--resume", "auto"])


def test_auto_does_not_replace_weights_that_it_cannot_continue(flags, begun):
    before = (begun / "best.pth").read_bytes()
    (begun / "last.pth").unlink()
    with pytest.raises(UserError, match="no last.pth to continue from"):
        train_GL.main([*flags, "--save_dir", str(begun.parents[2]), "--resume", "auto"])
    assert (begun / "best.pth").read_bytes() == before


def test_a_lone_file_of_a_run_is_not_overwritten(flags, tmp_path):
    folder = tmp_path / "folder" / "OKDDip" / "resnet8"
    folder.mkdir(parents=True)
    (folder / "best.pth").write_text("precious")
    with pytest.raises(UserError, match="holds a run already"):
        train_GL.main([*flags, "--save_dir", str(tmp_path)])
    assert (folder / "best.pth").read_text() == "precious"


def test_resume_and_overwrite_exclude_each_other(flags, capsys):
    with pytest.raises(SystemExit):
        train_GL.main([*flags, "--resume", "auto", "--overwrite"])
    assert "not both" in capsys.readouterr().err


def test_other_data_is_refused(flags, begun, tmp_path):
    other = make_images(tmp_path / "other", per_class=13)
    with pytest.raises(UserError, match="other images"):
        train_GL.main([*flags, "--data_dir", str(other), "--resume", str(begun)])
    (other / "train" / "blue").rename(other / "train" / "green")
    (other / "test" / "blue").rename(other / "test" / "green")
    with pytest.raises(UserError, match="other classes"):
        train_GL.main([*flags, "--data_dir", str(other), "--resume", str(begun)])


def test_other_pixels_and_other_test_images_are_refused(flags, begun, tmp_path):
    """As many images of the same classes, one of them white: other mean and std. One more test image."""
    other = tmp_path / "other"
    shutil.copytree(flags[-1], other)
    (image := other / "train" / "red" / "0.png").unlink()
    Image.new("RGB", (32, 32), "white").save(image)
    with pytest.raises(UserError, match="other normalisation"):
        train_GL.main([*flags, "--data_dir", str(other), "--resume", str(begun)])
    shutil.rmtree(other)
    shutil.copytree(flags[-1], other)
    shutil.copy(other / "test" / "red" / "0.png", other / "test" / "red" / "one more.png")
    with pytest.raises(UserError, match=r"other images \(.* there, .* here\): resume it with the same images"):
        train_GL.main([*flags, "--data_dir", str(other), "--resume", str(begun)])


def test_another_teacher_is_refused(images, teacher, tmp_path):
    import train_kd

    flags = [*FLAGS, "--num_epochs", "1", "--data_dir", str(images), "--T_model", "resnet14", "--save_dir",
             str(tmp_path), "--T_model_path"]
    train_kd.main([*flags, str(teacher)])
    other = models.create_model("resnet14", 2)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="other teacher"):
        train_kd.main([*flags, str(tmp_path / "other.pth"), "--num_epochs", "2", "--resume",
                       str(tmp_path / "folder" / "KD" / "resnet8")])


def test_num_epochs_is_not_lowered(flags, whole):
    with pytest.raises(UserError, match="was 4: it can be raised, not lowered"):
        train_GL.main([*flags, "--num_epochs", "3", "--resume", str(whole)])


def test_an_older_checkpoint_does_not_undo_the_run(flags, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    state = load(whole)
    state["history"].pop()
    del state["digest"]
    (tmp_path / "run" / "best.pth").write_bytes(checkpoints.serialise(state))
    with pytest.raises(UserError, match="has gone on since best.pth"):
        train_GL.main([*flags, "--resume", str(tmp_path / "run" / "best.pth")])


def test_a_checkpoint_without_its_digest_is_not_resumed(begun):
    state = load(begun)
    del state["digest"]
    torch.save(state, begun / "last.pth")
    with pytest.raises(UserError, match="digest"):
        checkpoints.load_checkpoint(begun / "last.pth")


def test_a_file_that_is_not_resumed_gets_no_lock_beside_it(flags, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "exported.pth")
    with pytest.raises(UserError, match="exported.pth cannot be resumed: it has no format"):
        train_GL.main([*flags, "--resume", str(tmp_path / "exported.pth")])
    assert [path.name for path in tmp_path.iterdir()] == ["exported.pth"]


def test_resume_continues_where_the_run_stopped(finished, tmp_path):
    """One epoch, then two more: the weights, metrics and curves of three in one go."""
    train_GL.main([*TINY, "--num_epochs", "1", "--save_dir", str(tmp_path)])
    folder = tmp_path / "DIGITS" / "OKDDip" / "resnet8"
    train_GL.main([*TINY, "--num_epochs", "3", "--resume", str(folder)])
    assert all(value.equal(saved_weights(folder)[name]) for name, value in saved_weights(finished).items())
    assert lines(folder) == lines(finished)
    assert curve(folder, "Test/AccTop1") == curve(finished, "Test/AccTop1")


def test_raising_num_epochs_keeps_the_first_schedule(tmp_path):
    flags = [f for f in TINY if f not in ("--schedule", "3")]
    train.main([*flags, "--num_epochs", "2", "--save_dir", str(tmp_path)])
    folder = tmp_path / "DIGITS" / "resnet8"
    train.main([*flags, "--num_epochs", "3", "--resume", str(folder / "last.pth")])
    assert [record["lr"] for record in lines(folder)] == pytest.approx([0.1, 0.01, 0.001])  # milestones 1 2, not 2 3


def test_raising_num_epochs_keeps_the_first_ramp_up(tmp_path):
    """w(e) begins after half of the first start's two epochs, not after half of four."""
    flags = [*TINY, "--start_consistency", "0.5", "--length", "2"]
    train_GL.main([*flags, "--num_epochs", "2", "--save_dir", str(tmp_path)])
    folder = tmp_path / "DIGITS" / "OKDDip" / "resnet8"
    train_GL.main([*flags, "--num_epochs", "4", "--resume", str(folder)])
    assert [record["weight"] for record in lines(folder)] == [ramp_up(epoch, 2, 0.5, 2) for epoch in range(4)]


@pytest.mark.parametrize(("flags", "said"), [(["--lr", "0.2"], "--lr 0.1 there, 0.2 here"),
                                             (["--num_branches", "3"], "--num_branches 4 there, 3 here")])
def test_resuming_with_other_flags_is_refused(finished, flags, said):
    before = (finished / "last.pth").read_bytes()
    with pytest.raises(UserError, match=said):
        train_GL.main([*TINY, *flags, "--num_epochs", "4", "--resume", str(finished)])
    with pytest.raises(UserError, match="--method OKDDip there"):
        train.main([*TINY, "--num_epochs", "4", "--resume", str(finished)])
    assert (finished / "last.pth").read_bytes() == before


def test_a_checkpoint_from_before_a_flag_or_a_metric_was_there(tmp_path):
    """It is continued as if it named the flag's default, and with nothing else. report.py adds the metric."""
    flags = [*TINY, "--train_size", "0"]
    train_GL.main([*flags, "--num_epochs", "1", "--save_dir", str(tmp_path)])
    folder = tmp_path / "DIGITS" / "OKDDip" / "resnet8"
    state = checkpoints.load_checkpoint(folder / "last.pth")
    assert state["flags"].pop("train_size") == 0 and state["flags"].pop("detach_targets") is False
    first = state["history"][0].pop("attention_self")
    (folder / "last.pth").write_bytes(checkpoints.serialise(state))
    for other, said in ((["--train_size", "500"], "--train_size 0 there, 500 here"),
                        (["--detach_targets"], "--detach_targets False there, True here")):
        with pytest.raises(UserError, match=said):
            train_GL.main([*flags, *other, "--num_epochs", "2", "--resume", str(folder)])
    evaluate.main([str(folder / "last.pth"), "--device", "cpu"])
    train_GL.main([*flags, "--num_epochs", "2", "--resume", str(folder)])
    assert ["attention_self" in record for record in lines(folder)] == [False, True]
    (run,), notes = find_runs([folder])
    assert notes == [] and run.history[0]["attention_self"] == pytest.approx(first, rel=1e-12)
    assert checkpoints.load_checkpoint(folder / "last.pth")["flags"]["train_size"] == 0


def test_a_checkpoint_that_would_run_code_is_not_resumed(begun, flags, tmp_path):
    class Harm:
        def __reduce__(self):
            return open, (str(tmp_path / "harm"), "w")

    torch.save({"state_dict": Harm()}, begun / "last.pth")
    with pytest.raises(UserError, match="not a checkpoint that can be loaded safely"):
        train_GL.main([*flags, "--resume", str(begun)])
    assert not (tmp_path / "harm").exists()


# --- the rules, with checkpoints that were never trained

DICTIONARIES = ("flags", "recipe", "state_dict", "optimizer", "scheduler", "scaler", "tally")
LISTS = ("history", "random", "starts")
FLAGS_OF = {"resume": "auto", "num_epochs": 2, "lr": 0.1, "seed": 0, "device": "cpu", "save_dir": "runs"}
HISTORY = [{"epoch": 1, "test_accTop1": 50.0}, {"epoch": 2, "test_accTop1": 60.0}]


def made_up(folder, history=HISTORY, name="last.pth", **changes):
    """A checkpoint with all parts, and the summary of a training that has ended with it."""
    content = dict.fromkeys(DICTIONARIES, {}) | dict.fromkeys(LISTS, []) | {
        "format": FORMAT, "history": history, "flags": {"method": "ONE", **FLAGS_OF}} | changes
    path = folder / name
    path.write_bytes(checkpoints.serialise({part: value for part, value in content.items() if value is not None}))
    (folder / "summary.json").write_text(json.dumps({"last": history[-1] if history else None}))
    return path


def asked(path, folder, method="ONE", **flags):
    return load_to_resume(path, Namespace(**FLAGS_OF | flags), method, folder)


@pytest.mark.parametrize("part", ["format", *DICTIONARIES, *LISTS])
@pytest.mark.parametrize("value", [None, "of another type"])
def test_a_missing_part_is_named(part, value, tmp_path):
    said = "checkpoint format of another type" if (part, value) == ("format", "of another type") else (
        f"cannot be resumed: it has no {part}")
    with pytest.raises(UserError, match=said):
        asked(made_up(tmp_path, **{part: value}), tmp_path)


def test_another_format_is_named(tmp_path):
    with pytest.raises(UserError, match=f"format {FORMAT + 1}, this code resumes {FORMAT}"):
        asked(made_up(tmp_path, format=FORMAT + 1), tmp_path)


@pytest.mark.parametrize(("changes", "said"), [
    ({"lr": 0.2}, "--lr 0.1 there, 0.2 here"), ({"method": "Ind"}, "--method ONE there, Ind here"),
    ({"alpha": 1.0}, "--alpha None there, 1.0 here"), ({"num_epochs": 1}, "was 2: it can be raised, not lowered"),
    ({"train_size": 5}, "--train_size 0 there, 5 here"), ({"decoder": "fast"}, "--decoder pil there, fast here"),
    ({"lr": 0.2, "seed": 1}, "--lr 0.1 there, 0.2 here; --seed 0 there, 1 here")])
def test_what_may_not_change(changes, said, tmp_path):
    with pytest.raises(UserError, match=said):
        asked(made_up(tmp_path), tmp_path, **changes)


def test_what_may_change(tmp_path):
    """Free flags, more epochs, and a later flag at its default."""
    path = made_up(tmp_path)
    found = asked(path, tmp_path, num_epochs=3, device="cuda", save_dir="elsewhere", resume=str(path), train_size=0)
    assert found["history"] == HISTORY


def test_complete_is_only_what_has_ended(tmp_path):
    """The summary is that of the last epoch, and no more epochs are wanted."""
    path = made_up(tmp_path)
    with pytest.raises(Complete, match="is complete: 2 epochs .more with --num_epochs"):
        asked(path, tmp_path)
    for summary in ("{}", "not JSON", json.dumps({"last": HISTORY[0]})):
        (tmp_path / "summary.json").write_text(summary)
        assert asked(path, tmp_path)["history"] == HISTORY
    (tmp_path / "summary.json").unlink()
    assert asked(path, tmp_path)["history"] == HISTORY
    assert asked(made_up(tmp_path, HISTORY[:1]), tmp_path)["history"] == HISTORY[:1]
    with pytest.raises(Complete, match="3 epochs"):  # it was raised to 3 meanwhile
        asked(made_up(tmp_path, [*HISTORY, {"epoch": 3}]), tmp_path)


def test_an_empty_history_has_not_ended(tmp_path):
    assert asked(made_up(tmp_path, []), tmp_path)["history"] == []
    assert not is_finished(tmp_path, [])


def test_an_older_best_is_not_continued(tmp_path):
    """Unless last.pth is missing, or not newer."""
    best = made_up(tmp_path, HISTORY[:1], "best.pth")
    assert asked(best, tmp_path)["history"] == HISTORY[:1]
    last = made_up(tmp_path)
    with pytest.raises(UserError, match="has gone on since best.pth: --resume .* continues it; to go back, copy"):
        asked(best, tmp_path)
    assert asked(last, tmp_path, num_epochs=3)["history"] == HISTORY
    made_up(tmp_path, HISTORY[:1])
    assert asked(best, tmp_path)["history"] == HISTORY[:1]


def test_which_file_is_resumed(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()

    def chosen(resume):
        return checkpoint_to_resume(Namespace(resume=resume), folder)

    assert chosen(None) is None and chosen("auto") is None
    (folder / "last.pth").write_text("")
    assert chosen("auto") == chosen(str(folder)) == chosen(str(folder / "last.pth")) == folder / "last.pth"
    assert chosen(str(folder / "best.pth")) == folder / "best.pth" and chosen(None) is None
    assert chosen(str(tmp_path)) == tmp_path / "last.pth"
