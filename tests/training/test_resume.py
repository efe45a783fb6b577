"""Interrupted runs end as those that were not: real processes, killed, stopped, out of disk space."""

import json
import random
import shutil
import signal

import pytest
import torch
from kill import FLAGS, METHODS, WORKERS, kill_and_compare, make_images, make_teacher
from processes import Training, assert_best_agrees, assert_same_run, epochs, lines, load

import models
import train
import train_GL
from runtime import checkpoints
from runtime.errors import Complete, UserError
from training.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def teacher(images, tmp_path_factory):
    return make_teacher(images, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def flags(images):
    return [*FLAGS, "--length", "3", "--num_epochs", "4", "--data_dir", str(images)]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """Four epochs of OKDDip that nobody interrupted."""
    root = tmp_path_factory.mktemp("whole")
    training = Training("train_GL", [*flags, "--save_dir", root], root)
    assert training.wait() == 0, training.said()
    return root / "folder" / "OKDDip" / "resnet8"


@pytest.fixture
def begun(flags, tmp_path):
    """The same after its first epoch."""
    train_GL.main([*flags, "--save_dir", str(tmp_path / "begun"), "--num_epochs", "1"])
    folder = tmp_path / "begun" / "folder" / "OKDDip" / "resnet8"
    (folder / "summary.json").unlink()
    return folder


# --- killed


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("method", METHODS)
def test_killed_at_random_moments(method, workers, images, teacher, tmp_path):
    kill_and_compare(method, workers, images, teacher, tmp_path, kills=3)


@pytest.mark.parametrize(("number", "workers", "aggregation"), [
    (signal.SIGTERM, 0, "attention"), (signal.SIGINT, 0, "random"), (signal.SIGTERM, 2, "attention"),
    (signal.SIGINT, 2, "attention")])
def test_a_signal_stops_amid_an_epoch_and_loses_nothing(number, workers, aggregation, flags, tmp_path):
    """Sent to the process or, where there are workers, to all of them."""
    images = make_images(tmp_path / "images", per_class=48)  # epochs long enough to stop in
    flags = [*flags, *WORKERS[workers], "--log_every", "1", "--aggregation", aggregation, "--data_dir", str(images),
             "--resume", "auto", "--save_dir"]
    method = "OKDDip" + "-random" * (aggregation == "random")
    stopped, whole = (tmp_path / name / "folder" / method / "resnet8" for name in ("stopped", "whole"))
    training = Training("train_GL", [*flags, tmp_path / "stopped"], tmp_path)
    training.until(lambda: "epoch 2/4  step 1/12" in training.said())
    training.signal(number, group=workers > 0)
    assert training.wait() == 128 + number
    state = load(stopped)
    assert len(state["history"]) == 1 and state["tally"]["steps"] > 0, "not amid the second epoch"
    assert f"--resume {stopped} continues there" in training.said() and "Traceback" not in training.said()
    for root in ("stopped", "whole"):
        training = Training("train_GL", [*flags, tmp_path / root], tmp_path)
        assert training.wait() == 0, training.said()
    assert_same_run(stopped, whole)


def test_a_signal_stops_amid_an_evaluation(flags, whole, tmp_path, monkeypatch):
    """A step that all is done for, but the test images: it is not trained again."""
    predicted = []
    attend = models.OKDDip.attend

    def interrupt(self, images):
        if not self.training:
            predicted.append(len(images))
            if len(predicted) == 2:
                signal.raise_signal(signal.SIGTERM)
        return attend(self, images)

    monkeypatch.setattr(models.OKDDip, "attend", interrupt)
    torch.set_num_threads(1)
    with pytest.raises(SystemExit) as stop:
        train_GL.main([*flags, "--save_dir", str(tmp_path)])
    assert stop.value.code == 128 + signal.SIGTERM
    folder = tmp_path / "folder" / "OKDDip" / "resnet8"
    assert load(folder)["tally"]["steps"] == 3 and load(folder)["history"] == []
    train_GL.main([*flags, "--resume", str(folder)])
    assert_same_run(folder, whole)


def test_a_second_signal_ends_at_once(flags, begun):
    before = (begun / "last.pth").read_bytes()
    training = Training("train_GL", [*flags, "--resume", begun, "--log_every", "1"], begun, slow_disk=True)
    training.until(lambda: "epoch 2/4  step 1/3" in training.said())
    training.signal(signal.SIGTERM)
    training.until(lambda: (begun / "last.pth.tmp").exists())
    training.signal(signal.SIGTERM)
    assert training.wait() == -signal.SIGTERM
    assert (begun / "last.pth").read_bytes() == before


# --- --resume


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


def test_best_is_written_again_where_a_kill_came_between_the_renames(flags, begun, whole):
    """last.pth is there, best.pth is not yet."""
    (begun / "best.pth").unlink()
    (begun / "test_best_metrics.json").write_text("{}")
    train_GL.main([*flags, "--resume", str(begun), "--num_epochs", "1"])
    assert_best_agrees(begun)


@pytest.mark.parametrize("place", range(1, 11))
def test_killed_before_each_rename(place, flags, tmp_path):
    """Of all files, over two epochs; then again, over a third: nothing is missing once it has gone on to its end."""
    flags = [*flags, "--resume", "auto", "--save_dir"]
    folders = [tmp_path / name / "folder" / "OKDDip" / "resnet8" for name in ("killed", "whole")]
    for num_epochs in ("2", "3"):
        training = Training("train_GL", [*flags, tmp_path / "killed", "--num_epochs", num_epochs], tmp_path,
                            die_at=place)
        assert training.wait() in (-signal.SIGKILL, 0), training.said()
        for where in ("killed", "whole"):
            training = Training("train_GL", [*flags, tmp_path / where, "--num_epochs", num_epochs], tmp_path)
            assert training.wait() == 0, training.said()
        assert_same_run(*folders)
        summary = json.loads((folders[0] / "summary.json").read_text())
        assert summary["last"]["epoch"] == int(num_epochs)


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


def test_save_every(flags, tmp_path, monkeypatch):
    """last.pth every second epoch, and wherever a best or the last epoch is; the JSON lines always."""
    saved = []
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, best=False: (saved.append((len(self.history), best)),
                                                                       save(self, best))[1])
    train_GL.main([*flags, "--save_dir", str(tmp_path), "--save_every", "3"])
    accuracies = [line["stu_test_accTop1"] for line in lines(tmp_path / "folder" / "OKDDip" / "resnet8")]
    best = [a == max(accuracies[:i + 1]) for i, a in enumerate(accuracies)]
    assert saved == [(i + 1, best[i]) for i in range(4) if best[i] or i in (2, 3)]


def test_a_run_that_is_being_trained_is_left_alone(images, flags, tmp_path):
    """The lock of a killed process is gone at once, though its workers live a little longer."""
    flags = [*flags, *WORKERS[2], "--save_dir", str(tmp_path), "--log_every", "1", "--num_epochs", "200"]
    first = Training("train_GL", flags, tmp_path / "first")
    first.until(lambda: "epoch 2/200" in first.said())
    for way_in in (["--resume", "auto"], ["--overwrite"]):
        second = Training("train_GL", [*flags, *way_in], tmp_path / "second")
        assert second.wait() == 2 and "another process is training in" in second.said()
        assert "Traceback" not in second.said()
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    third = Training("train_GL", [*flags, "--resume", "auto"], tmp_path / "third")
    third.until(lambda: "continues after" in third.said())
    third.signal(signal.SIGTERM)
    assert third.wait() == 128 + signal.SIGTERM


# --- files


@pytest.mark.parametrize("share", [0.0005, 0.001, 0.01, 0.3, 0.6, 0.99, 0.9999])
def test_a_disk_that_fills_leaves_the_old_checkpoint(share, flags, begun):
    """Files may not grow beyond a share of a checkpoint: as a full disk, it fails the write."""
    before = {name: (begun / name).read_bytes() for name in ("last.pth", "best.pth", "test_best_metrics.json")}
    training = Training("train_GL", [*flags, "--resume", begun], begun.parents[2],
                        file_size=int(share * len(before["last.pth"])))
    assert training.wait() == 2
    assert {name: (begun / name).read_bytes() for name in before} == before and epochs(begun) == 1
    assert not list(begun.glob("*.tmp"))
    assert training.said().count("cannot be saved") == 1 and "Traceback" not in training.said()


def test_a_folder_that_vanishes_is_named(flags, tmp_path):
    folder = tmp_path / "folder" / "OKDDip" / "resnet8"
    training = Training("train_GL", [*flags, "--num_epochs", "100", "--save_dir", tmp_path], tmp_path)
    training.until(lambda: "epoch 1/100  loss" in training.said())
    shutil.rmtree(folder.rename(tmp_path / "gone"))
    assert training.wait() == 2
    assert "No such file or directory" in training.said() and "Traceback" not in training.said()


def test_a_damaged_checkpoint_gives_the_right_weights_or_a_sentence(begun, tmp_path):
    """Cut at 50 lengths, and with each of 50 bytes flipped."""
    whole, rng = (begun / "last.pth").read_bytes(), random.Random(0)
    right = checkpoints.digest(load(begun)["state_dict"])
    damaged = [whole[:rng.randrange(len(whole))] for _ in range(50)]
    for place in [*(rng.randrange(len(whole)) for _ in range(40)), *(-rng.randrange(1, 3000) for _ in range(10))]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    refused = 0
    for content in damaged:
        (tmp_path / "damaged.pth").write_bytes(content)
        try:
            weights = checkpoints.load_checkpoint(tmp_path / "damaged.pth")["state_dict"]
        except UserError as error:
            refused += "damaged" in str(error)
        else:
            assert checkpoints.digest(weights) == right
    assert refused >= 50  # a cut one never passes


def test_a_checkpoint_without_its_digest_is_not_resumed(begun):
    state = load(begun)
    del state["digest"]
    torch.save(state, begun / "last.pth")
    with pytest.raises(UserError, match="digest"):
        checkpoints.load_checkpoint(begun / "last.pth")


# --- divergence


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
