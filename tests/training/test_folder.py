"""Paths, locks, and finished runs: recognised by their records, before PyTorch is imported."""

import errno
import json
import shutil
import signal

import pytest
from processes import WORKERS, Training, group

import train_GL
from models import file_of
from runtime.errors import UserError
from training import folder as module
from training.folder import FILES, finished_run, run_folder
from training.run import Run


def test_which_file_is_resumed(arguments, tmp_path):
    run = tmp_path / "CIFAR10" / "KD" / "resnet32"
    run.mkdir(parents=True)
    (run / "last.pth").write_text("")
    for resume, found in (("auto", "last.pth"), (run, "last.pth"), (run / "best.pth", "best.pth")):
        assert run_folder(arguments("--resume", str(resume)), "KD") == (run, run / found)
    for left in ("best.pth", "metrics.jsonl", "summary.json"):  # they would be replaced
        *_, only = run.iterdir()
        only.rename(run / left)
        with pytest.raises(UserError, match=f"{left} and no last.pth to continue from"):
            run_folder(arguments("--resume", "auto"), "KD")


@pytest.mark.parametrize("name", FILES)
def test_a_run_is_not_overwritten(name, arguments, tmp_path):
    """Not even a lone file of one."""
    folder = tmp_path / "CIFAR10" / "resnet32"
    folder.mkdir(parents=True)
    assert run_folder(arguments(), "baseline") == (folder, None)  # an empty folder is no run
    (folder / name).write_text("precious")
    with pytest.raises(UserError, match="--resume.*--version.*--overwrite"):
        run_folder(arguments(), "baseline")
    assert run_folder(arguments("--overwrite"), "baseline") == (folder, None)


# --- locks


def test_a_run_that_is_being_trained_is_left_alone(flags, tmp_path, monkeypatch):
    """The lock of a killed process is gone at once, though its workers live a little longer."""
    flags = [*flags, *WORKERS[2], "--save_dir", str(tmp_path), "--log_every", "1", "--num_epochs", "200"]
    first = Training("train_GL", flags, tmp_path / "first")
    first.until(lambda: "epoch 2/200" in first.said())
    monkeypatch.setattr(train_GL.OKDDip, "before_step", lambda *_: signal.raise_signal(signal.SIGTERM))
    for way_in in (["--resume", "auto"], ["--overwrite"]):
        with pytest.raises(UserError, match="another process is training in"):
            train_GL.main([*flags, *way_in])
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    with pytest.raises(SystemExit):
        train_GL.main([*flags, "--resume", "auto"])
    assert "continues after" in (tmp_path / "folder" / "OKDDip" / "resnet8" / "train.log").read_text()


@pytest.mark.parametrize(("way_in", "message"), [([], "holds a run already"), (["--resume", "auto"], "meanwhile")])
def test_a_run_that_another_process_has_made_meanwhile_is_left_alone(way_in, message, arguments):
    """After this process looked into the folder, and before it took the lock."""
    late, first = (Run(arguments(*way_in), "baseline") for _ in range(2))
    with first:
        (first.folder / "last.pth").write_text("trained by the first")
    with pytest.raises(UserError, match=message), late:
        pass
    assert (first.folder / "last.pth").read_text() == "trained by the first"


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "lockf", no_locks)
    module.Lock(tmp_path).release()
    assert "without locks (No locks available)" in capsys.readouterr().err


# --- finished runs


@pytest.fixture
def finished(whole, tmp_path, flags):
    """A copy of a finished run, and the command of train_GL.py that made it."""
    folder = tmp_path / "runs" / "folder" / "OKDDip" / "resnet8"
    shutil.copytree(whole, folder)
    rewrite(folder, "parameters.json", command="train_GL.py --model resnet8")
    return folder, [*flags, "--save_dir", str(tmp_path / "runs"), "--resume", "auto"]


def rewrite(folder, name, **changes):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))


def recognised(argv, script="train_GL"):
    """The folder, or None."""
    return finished_run(train_GL.parse_args(argv), script)


def test_a_finished_run(finished, script):
    """By all its flags and those that do not matter; with --resume auto and by its folder."""
    folder, command = finished
    for checkpoint in ("last.pth", "best.pth"):  # not needed: they may have been deleted
        (folder / checkpoint).unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for more in ([], ["--gpu_id", "3", "--num_workers", "0", "--log_every", "7"], ["--resume", str(folder)]):
        assert recognised([*command, *more]) == folder
    done = script("train_GL.py", *command, PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and done.stdout == f"{folder} is complete: 4 epochs (more with --num_epochs)\n"
    assert "training.folder" in imported and not {"torch", "numpy"} & imported
    done = script("train_GL.py", *command, **group(2)[1])
    assert done.returncode == 0 and done.stdout == ""  # the first of several processes says it
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_size_that_a_network_from_elsewhere_has_chosen(finished):
    """Its run records the size, which is not on the command line."""
    folder, command = finished
    rewrite(folder, "parameters.json", model="timm:a", image_size=96)
    folder, command = folder.rename(folder.with_name("timm-a")), [*command, "--model", "timm:a"]
    assert recognised(command) == recognised([*command, "--image_size", "96"]) == folder
    assert recognised([*command, "--image_size", "32"]) is None


def test_a_network_file_that_has_changed(finished, tmp_path):
    folder, command = finished
    name = f"{tmp_path / 'net.py'}:Net"
    (tmp_path / "net.py").write_text("as trained")
    rewrite(folder, "parameters.json", model=name, files={name: file_of(name)[1][:8]}, image_size=32)
    folder, command = folder.rename(folder.with_name("net-Net")), [*command, "--model", name]
    assert recognised(command) == folder
    (tmp_path / "net.py").write_text("edited")
    assert recognised(command) is None
    (tmp_path / "net.py").unlink()
    assert recognised(command) is None


def test_other_flags_or_another_script(finished):
    """A script may have the same flags."""
    folder, command = finished
    for more in (["--num_epochs", "5"], ["--MulStu"], ["--T_model", "resnet8"]):
        assert recognised([*command, *more]) is recognised([*command, *more, "--resume", str(folder)]) is None
    for more in (["--version", "seed1"], ["--resume", "nowhere"], ["--resume", str(folder / "last.pth")]):
        assert recognised([*command, *more]) is None
    assert recognised([*command, "--version", "seed1", "--resume", str(folder)]) == folder
    assert recognised(command, script="train_FFL") is None
    moved = folder.parent.rename(folder.parent.with_name("OKDDip_old")) / folder.name
    assert recognised(command) is None and recognised([*command, "--resume", str(moved)]) == moved


@pytest.mark.parametrize("change", [
    lambda folder: rewrite(folder, "summary.json", last={"epoch": 3}),
    lambda folder: rewrite(folder, "parameters.json", num_epochs=5),  # it was raised, and the training stopped
    lambda folder: rewrite(folder, "parameters.json", lr=0.3),
    lambda folder: rewrite(folder, "parameters.json", revision=0),
    lambda folder: rewrite(folder, "parameters.json", command=None),
    *(lambda folder, name=name, text=text: (folder / name).write_text(text)
      for name in ("summary.json", "parameters.json") for text in ("{}", "[]", "{\"last\": 1")),
    *(lambda folder, name=name: (folder / name).unlink() for name in ("summary.json", "parameters.json"))])
def test_other_records(change, finished):
    folder, command = finished
    change(folder)
    assert recognised(command) is None
