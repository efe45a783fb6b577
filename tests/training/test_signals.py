"""Ctrl-C, SIGTERM and SIGHUP stop real processes; nothing is lost."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from kill import WORKERS, make_images
from processes import Training, assert_same_run, load

import models
import train_GL


@pytest.mark.parametrize(("number", "workers", "aggregation"), [
    (signal.SIGTERM, 0, "attention"), (signal.SIGINT, 0, "random"), (signal.SIGTERM, 2, "attention"),
    (signal.SIGINT, 2, "attention"), (signal.SIGHUP, 0, "attention")])
def test_a_signal_stops_during_an_epoch_and_loses_nothing(number, workers, aggregation, flags, tmp_path):
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
    assert len(state["history"]) == 1 and state["tally"]["steps"] > 0, "not during the second epoch"
    assert (f"stopped by signal {number} after step {state['tally']['steps']} of epoch 2: --resume {stopped} continues "
            "there") in training.said() and "Traceback" not in training.said()
    for root in ("stopped", "whole"):
        training = Training("train_GL", [*flags, tmp_path / root], tmp_path)
        assert training.wait() == 0, training.said()
    assert_same_run(stopped, whole)


def test_a_signal_stops_during_an_evaluation(flags, whole, tmp_path, monkeypatch):
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
    assert "continues after 0 epochs and 3 steps\n" in (folder / "train.log").read_text()
    assert_same_run(folder, whole)


def test_nohup_ignores_sighup(flags, tmp_path):
    """What is ignored at the start stays ignored: the training reaches its end."""
    code = "import utils, train_GL; utils.command(train_GL.main)"
    flags = [*map(str, flags), "--num_epochs", "2", "--log_every", "1", "--save_dir", str(tmp_path)]
    process = subprocess.Popen(["nohup", sys.executable, "-c", code, *flags], stdout=subprocess.PIPE, cwd=ROOT,
                               stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if "epoch 1/2  step 1/3" in line:
            process.send_signal(signal.SIGHUP)
            break
    assert "done: best epoch" in process.communicate(timeout=120)[0] and process.returncode == 0


def test_sighup_stops_all_processes_of_torchrun(flags, tmp_path):
    """Even under nohup, because torchrun passes the signal on: each process has its step saved."""
    words = ["nohup", sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
             ROOT / "train_GL.py", *flags, "--log_every", "1", "--num_epochs", "300", "--save_dir", tmp_path]
    process = subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})
    for line in process.stdout:
        if "epoch 2/300  step 1/3" in line:
            process.send_signal(signal.SIGHUP)
            break
    said = process.communicate(timeout=120)[0]
    assert process.returncode != 0 and "stopped by signal 1 after step" in said, said
    assert len(load(tmp_path / "folder" / "OKDDip" / "resnet8")["history"]) >= 1


def test_a_second_signal_ends_at_once(flags, begun):
    before = (begun / "last.pth").read_bytes()
    training = Training("train_GL", [*flags, "--resume", begun, "--log_every", "1"], begun, slow_disk=True)
    training.until(lambda: "epoch 2/4  step 1/3" in training.said())
    training.signal(signal.SIGTERM)
    training.until(lambda: (begun / "last.pth.tmp").exists())
    training.signal(signal.SIGTERM)
    assert training.wait() == -signal.SIGTERM
    assert (begun / "last.pth").read_bytes() == before
