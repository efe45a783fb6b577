import errno

from training import lock


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", no_locks)
    lock.Lock(tmp_path).release()
    assert "without locks (No locks available)" in capsys.readouterr().err
