import errno
import os
import stat

import pytest

from runtime import files
from runtime.errors import UserError


def test_files_are_saved_together_or_not_at_all(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(UserError, match="cannot be written"):
        files.save({tmp_path / "a": b"new", tmp_path / "no folder" / "b": b"new"})
    assert (tmp_path / "a").read_bytes() == b"old" and [f.name for f in tmp_path.iterdir()] == ["a"]


def test_a_file_system_that_cannot_sync_folders(tmp_path, monkeypatch):
    """Files are synced; of folders it is tried."""
    sync, asked = os.fsync, []

    def only_files(descriptor):
        asked.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        if asked[-1]:
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr("os.fsync", only_files)
    files.save({tmp_path / "a": b"new"})
    assert (tmp_path / "a").read_bytes() == b"new" and asked == [False, True]
