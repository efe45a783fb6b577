import pytest

from runtime import files
from runtime.errors import UserError


def test_files_are_saved_together_or_not_at_all(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(UserError, match="cannot be written"):
        files.save({tmp_path / "a": b"new", tmp_path / "no folder" / "b": b"new"})
    assert (tmp_path / "a").read_bytes() == b"old" and [f.name for f in tmp_path.iterdir()] == ["a"]
