"""--resume: continue a run, with the same bits as without a stop, or say why not. After signals, kills, a full disk."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from image_data import make_images
from PIL import Image
from processes import FLAGS, WORKERS, Training, assert_same_run, lines, load, run_until_the_end

import evaluate
import models
import train
import train_GL
import train_kd
from analysis.records import find_runs
from losses import ramp_up
from runtime import checkpoints
from runtime.errors import Complete, UserError
from training import loop
from training.checkpoint import OLD_NAMES

METHODS = {  # a run's folder -> script and flags
    "baseline": "train", "KD": "train_kd --T_model resnet14 --save_steps 5",
    "OKDDip": "train_GL --length 3", "OKDDip-detach_targets": "train_GL --detach_targets",
    "OKDDip-random-no_leader": "train_GL --aggregation random --no_leader",
    "ONE": "train_one --length 3", "CL-ILR": "train_one --avg --bpscale",
    "DML-detach_targets": "train_DML --detach_targets --num_branches 2",
    "FFL": "train_FFL --length 3 --num_branches 2", "PCL": "train_PCL --length 3 --num_branches 2 --save_steps 5",
    "KDCL-general": "train_KDCL --target general --val_size 6 --num_branches 2",
    "OKDPH-dirichlet": "train_OKDPH --hybrid dirichlet --num_branches 2 --save_steps 5",
    "OKDPH-hybrid_gradient": "train_OKDPH --hybrid_gradient --interval 5_batch --num_branches 2"}


@pytest.mark.parametrize("method", METHODS)
def test_stopped_four_times_it_is_the_same_run(method, images, teacher, tmp_path, monkeypatch):
    """In the first epoch, in its evaluation, before the first step of the second epoch and after it.

    Then it is killed after the next step. --save_steps 5, which some have, has just saved it.
    """
    script, *flags = METHODS[method].split()
    argv = [*FLAGS, *flags, *WORKERS[0], "--data_dir", str(images), "--num_epochs", "2"]
    if method == "KD":
        argv += ["--T_model_path", str(teacher)]
    # A check before each of the three steps of an epoch and after the last; as many in an evaluation. KDCL: more.
    stops = (2, 7, 10, 2, -2) if method == "KDCL-general" else (2, 6, 6, 2, -2)
    for name, places in (("whole", ()), ("stopped", stops)):
        run_until_the_end(script, [*argv, "--resume", "auto", "--save_dir", str(tmp_path / name)], monkeypatch, places)
    (whole,) = (tmp_path / "whole" / "folder").rglob("resnet8")
    stopped = tmp_path / "stopped" / whole.relative_to(tmp_path / "whole")
    assert_same_run(stopped, whole)
    starts = load(stopped)["starts"]
    saved = "--save_steps" in argv
    assert [start["epoch"] for start in starts] == [1, 1, 1, 2, 2] + [2] * saved
    assert [bool(start["step"]) for start in starts] == [False, True, True, False, True] + [True] * saved


def test_raising_num_epochs_keeps_the_first_schedule_and_ramp_up(images, tmp_path):
    """Milestones 1 2, not 2 3; w(e) begins after half of the first start's two epochs, not after half of four."""
    schedule = FLAGS.index("--schedule")
    argv = [*FLAGS[:schedule], *FLAGS[schedule + 2:], "--start_consistency", "0.5", "--length", "2", "--data_dir",
            str(images), "--save_dir", str(tmp_path), "--num_epochs"]
    train_GL.main([*argv, "2"])
    folder = tmp_path / "folder" / "OKDDip" / "resnet8"
    train_GL.main([*argv, "4", "--resume", str(folder / "last.pth")])
    assert [record["lr"] for record in lines(folder)] == pytest.approx([0.02, 0.002, 0.0002, 0.0002])
    assert [record["weight"] for record in lines(folder)] == [ramp_up(epoch, 2, 0.5, 2) for epoch in range(4)]


def test_a_checkpoint_of_older_code(images, tmp_path):
    """Entries had other names, flags and a metric were missing, a baseline had no name. It is measured and continued as
    if it named the flags' defaults, and with nothing else. report.py adds the metric."""
    def older(folder, *, pop=()):
        state = checkpoints.load_checkpoint(folder / "last.pth")
        for name, new in OLD_NAMES.items():
            state[name] = state.pop(new)
        del state["terms"]
        later = ("train_size", "detach_targets", "save_steps", "T_model_path")
        state["flags"] = {k: v for k, v in state["flags"].items() if k not in later}
        state["flags"]["method"] = state["flags"]["method"].replace("baseline", "")
        del state["recipe"]["number of held-out images"]  # a folder val/ was not used
        state["tally"]["sums"]["hits"] = state["tally"]["sums"].pop("correct")
        removed = [record.pop(name) for record in state["history"] for name in pop]
        (folder / "last.pth").write_bytes(checkpoints.serialise(state))
        return removed

    with_val = shutil.copytree(images, tmp_path / "with_val")
    shutil.copytree(images / "test", with_val / "val")
    argv = [*FLAGS, "--data_dir", str(images), "--save_dir", str(tmp_path), "--num_epochs"]
    for script, method, pop in ((train, "", []), (train_GL, "OKDDip", ["attention_self"])):
        step = loop.Stepper.step
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(loop.Stepper, "step", lambda self, *batch, step=step: (step(self, *batch),
                          self.scheduler.last_epoch == 1 and signal.raise_signal(signal.SIGTERM)))
            script.main([*argv, "2"])
        folder = tmp_path / "folder" / method / "resnet8"
        removed = older(folder, pop=pop)
        evaluate.main([str(folder / "last.pth"), "--device", "cpu"])
        with pytest.raises(UserError, match="with the folder val/ in .*with_val: .* Move val/ away"):
            script.main([*argv, "2", "--data_dir", str(with_val), "--resume", str(folder)])
        script.main([*argv, "2", "--resume", str(folder)])
        whole = tmp_path / f"whole{method}"
        script.main([*argv, "2", "--save_dir", str(whole)])
        assert all(value.equal(load(folder)["state_dict"][name])
                   for name, value in load(whole / "folder" / method / "resnet8")["state_dict"].items())
        assert lines(folder)[1] == lines(whole / "folder" / method / "resnet8")[1]
    (run,), notes = find_runs([folder])
    assert notes == [] and [run.history[0]["attention_self"]] == pytest.approx(removed, rel=1e-12)


# --- what is refused


def test_other_data_is_refused(flags, begun, tmp_path):
    """Another number of images, a white one instead of one (other mean and std), a class with another name, val/."""
    for said in ("images", "normalisation", "classes", "number of held-out images"):
        other = shutil.copytree(flags[-1], tmp_path / said)
        image = other / "train" / "red" / "1.png"
        if said == "images":
            shutil.copy(other / "test" / "red" / "1.png", other / "test" / "red" / "one more.png")
        elif said == "normalisation":
            image.unlink()
            Image.new("RGB", (32, 32), "white").save(image)
        elif said != "classes":
            shutil.copytree(other / "test", other / "val")
        else:
            for part in ("train", "test"):
                (other / part / "blue").rename(other / part / "green")
        with pytest.raises(UserError, match=f"other {said} .*there, .* here.*: resume it with the same {said}"):
            train_GL.main([*flags, "--data_dir", str(other), "--resume", str(begun)])


def test_another_teacher_is_refused(images, teacher, tmp_path):
    argv = [*FLAGS, "--num_epochs", "1", "--data_dir", str(images), "--T_model", "resnet14", "--save_dir",
            str(tmp_path), "--T_model_path"]
    train_kd.main([*argv, str(teacher)])
    torch.save({"state_dict": models.create_model("resnet14", 2).state_dict()}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="other teacher"):
        train_kd.main([*argv, str(tmp_path / "other.pth"), "--num_epochs", "2", "--resume",
                       str(tmp_path / "folder" / "KD" / "resnet8")])


def test_files_that_are_not_resumed(flags, begun, tmp_path):
    """A damaged one, and one that is no checkpoint of a run, which gets no lock beside it."""
    (begun / "last.pth").write_bytes((begun / "last.pth").read_bytes()[:-1000])
    with pytest.raises(UserError, match="last.pth is not a checkpoint"):  # auto does not pass over it
        train_GL.main([*flags, "--save_dir", str(begun.parents[2]), "--resume", "auto"])
    (folder := tmp_path / "exported").mkdir()
    torch.save({"state_dict": {}}, folder / "exported.pth")
    with pytest.raises(UserError, match="exported.pth cannot be resumed: it has no format"):
        train_GL.main([*flags, "--resume", str(folder / "exported.pth")])
    assert [path.name for path in folder.iterdir()] == ["exported.pth"]


# --- signals, in processes of their own


@pytest.mark.parametrize(("number", "workers"), [
    (signal.SIGTERM, 2), *(pytest.param(number, workers, marks=pytest.mark.slow) for number, workers in (
        (signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGINT, 2), (signal.SIGHUP, 0)))])
def test_a_signal_stops_during_an_epoch_and_loses_nothing(number, workers, flags, tmp_path):
    """Sent to the process or, where there are workers, to all of them."""
    images = make_images(tmp_path / "images", 48, 48)  # epochs long enough to stop in
    flags = [*flags, *WORKERS[workers], "--log_every", "1", "--data_dir", str(images), "--num_epochs", "3", "--resume",
             "auto", "--save_dir"]
    stopped, whole = (tmp_path / name / "folder" / "OKDDip" / "resnet8" for name in ("stopped", "whole"))
    training = Training("train_GL", [*flags, tmp_path / "stopped"], tmp_path)
    training.until(lambda: "epoch 2/3  step 1/12" in training.said())
    for _ in range(1 + (number == signal.SIGHUP)):  # a shell and its terminal both send it
        training.signal(number, group=workers > 0)
    assert training.wait() == 128 + number
    state = load(stopped)
    assert len(state["history"]) == 1 and state["sums"]["steps"] > 0, "not during the second epoch"
    assert (f"stopped by signal {number} after step {state['sums']['steps']} of epoch 2: the same command with "
            f"--resume {stopped} continues there") in training.said() and "Traceback" not in training.said()
    for root in ("stopped", "whole"):
        train_GL.main([*map(str, flags), str(tmp_path / root)])
    assert_same_run(stopped, whole)


def hang_up(step, *words):
    """Start Python with these arguments, under nohup. Send SIGHUP at this step; -> what is said after, exit code."""
    process = subprocess.Popen(["nohup", sys.executable, *map(str, words), "--log_every", "1"], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if step in line:
            process.send_signal(signal.SIGHUP)
            break
    return process.communicate(timeout=120)[0], process.returncode


def test_nohup_ignores_sighup(flags, tmp_path):
    """What is ignored at the start stays ignored: the training reaches its end."""
    words = [ROOT / "train_GL.py", *flags, "--num_epochs", "2", "--save_dir", tmp_path]
    said, code = hang_up("epoch 1/2  step 1/3", *words)
    assert "done: best epoch" in said and code == 0


@pytest.mark.slow
def test_sighup_stops_all_processes_of_torchrun(flags, tmp_path):
    """Even under nohup, because torchrun passes the signal on: each process has its step saved."""
    said, code = hang_up("epoch 2/300  step 1/3", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                         ROOT / "train_GL.py", *flags, "--num_epochs", "300", "--save_dir", tmp_path)
    assert code != 0 and "stopped by signal 1 after step" in said, said
    assert len(load(tmp_path / "folder" / "OKDDip" / "resnet8")["history"]) >= 1


def test_a_second_signal_ends_at_once(flags, begun):
    before = (begun / "last.pth").read_bytes()
    training = Training("train_GL", [*flags, "--resume", begun, "--log_every", "1"], begun, slow_disk=True)
    training.until(lambda: "epoch 2/4  step 1/3" in training.said())
    training.signal(signal.SIGTERM)
    training.until(lambda: (begun / "last.tmp.pth").exists())
    training.signal(signal.SIGTERM)
    assert training.wait() == -signal.SIGTERM
    assert (begun / "last.pth").read_bytes() == before


# --- kills and full disks: a whole checkpoint is always there


@pytest.fixture(scope="module")
def two_then_three(flags, tmp_path_factory):
    """num_epochs -> the folder of a run that was not killed: two epochs, and the same after a third."""
    root, folders = tmp_path_factory.mktemp("two_then_three"), {}
    for num_epochs in ("2", "3"):
        train_GL.main([*flags, "--resume", "auto", "--save_dir", str(root), "--num_epochs", num_epochs])
        folders[num_epochs] = shutil.copytree(root / "folder" / "OKDDip" / "resnet8", root / num_epochs)
    return folders


@pytest.mark.parametrize("place", [3, *(pytest.param(place, marks=pytest.mark.slow)
                                        for place in (1, 2, *range(4, 11)))])
def test_killed_before_each_rename(place, flags, two_then_three, tmp_path):
    """Of all files, over two epochs; then again, over a third: nothing is missing once it has gone on to its end."""
    flags = [*flags, "--resume", "auto", "--save_dir", tmp_path]
    folder = tmp_path / "folder" / "OKDDip" / "resnet8"
    for num_epochs in ("2", "3"):
        training = Training("train_GL", [*flags, "--num_epochs", num_epochs], tmp_path, die_at=place)
        assert training.wait() in (-signal.SIGKILL, 0), training.said()
        with contextlib.suppress(Complete):
            train_GL.main([*map(str, flags), "--num_epochs", num_epochs])
        assert_same_run(folder, two_then_three[num_epochs])
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["last"]["epoch"] == int(num_epochs)


@pytest.mark.parametrize("share", [0.3, *(pytest.param(share, marks=pytest.mark.slow)
                                          for share in (0.0005, 0.001, 0.01, 0.6, 0.99, 0.9999))])
def test_a_disk_that_fills_leaves_the_old_checkpoint(share, flags, begun):
    """Files may not grow beyond a share of a checkpoint: as a full disk, it fails the write."""
    before = {name: (begun / name).read_bytes() for name in ("last.pth", "best.pth", "test_best_metrics.json")}
    training = Training("train_GL", [*flags, "--resume", begun], begun.parents[2],
                        file_size=int(share * len(before["last.pth"])))
    assert training.wait() == 2
    assert {name: (begun / name).read_bytes() for name in before} == before
    assert not list(begun.glob("*.tmp.*"))
    assert training.said().count("cannot be written") == 1 and "Traceback" not in training.said()


def test_a_folder_that_vanishes_is_named(baseline, monkeypatch):
    argv, folder = baseline
    measure = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *batch: (shutil.rmtree(folder), measure(*batch))[1])
    with pytest.raises(UserError, match="cannot be written .No such file or directory"):
        train.main([*argv, "1"])


def test_an_epoch_that_was_begun_keeps_its_batches(baseline):
    """Whether a small last batch joins the one before depends on the number of processes."""
    argv, folder = baseline
    train.main([*argv, "1"])
    checkpoint = load(folder)
    del checkpoint["digest"]
    checkpoint["sums"]["steps"] = 1
    (folder / "last.pth").write_bytes(checkpoints.serialise(checkpoint | {"steps_per_epoch": 4}))
    with pytest.raises(UserError, match="stopped inside an epoch of 4 steps, which has 3 with this number"):
        train.main([*argv, "2", "--resume", "auto"])
