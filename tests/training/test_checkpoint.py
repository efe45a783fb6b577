"""Killed processes, full disks, damaged files: a whole checkpoint is always there."""

import json
import random
import shutil
import signal

import pytest
from kill import WORKERS, kill_and_compare
from processes import Training, assert_best_agrees, assert_same_run, epochs, load

import train_GL
from runtime import checkpoints
from runtime.errors import UserError


@pytest.mark.parametrize(("method", "workers"), [
    *((method, workers) for method in ("OKDDip", "ONE", "KD") for workers in WORKERS),
    ("FFL", 0), ("PCL", 2), ("KDCL-general", 0), ("OKDPH-dirichlet", 2)])
def test_killed_at_random_moments(method, workers, images, teacher, tmp_path):
    kill_and_compare(method, workers, images, teacher, tmp_path, kills=3)


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


def test_best_is_written_again_where_a_kill_came_between_the_renames(flags, begun, whole):
    """last.pth is there, best.pth is not yet."""
    (begun / "best.pth").unlink()
    (begun / "test_best_metrics.json").write_text("{}")
    train_GL.main([*flags, "--resume", str(begun), "--num_epochs", "1"])
    assert_best_agrees(begun)


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
