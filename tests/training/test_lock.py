import errno
import signal

import pytest
from kill import WORKERS
from processes import Training

from runtime.errors import UserError
from training import lock
from training.run import Run


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


@pytest.mark.parametrize(("way_in", "message"), [([], "holds a run already"), (["--resume", "auto"], "meanwhile")])
def test_a_run_that_another_process_has_made_meanwhile_is_left_alone(way_in, message, arguments):
    """After this process looked into the folder, and before it took the lock."""
    late, first = Run(arguments(*way_in)), Run(arguments(*way_in))
    with first:
        (first.folder / "last.pth").write_text("trained by the first")
    with pytest.raises(UserError, match=message), late:
        pass
    assert (first.folder / "last.pth").read_text() == "trained by the first"


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", no_locks)
    lock.Lock(tmp_path).release()
    assert "without locks (No locks available)" in capsys.readouterr().err
