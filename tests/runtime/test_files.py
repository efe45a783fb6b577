import pytest

from runtime import files
from runtime.errors import UserError


def test_files_are_saved_together_or_not_at_all(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(UserError, match="cannot be written"):
        files.save({tmp_path / "a": b"new", tmp_path / "no folder" / "b": b"new"})
    assert (tmp_path / "a").read_bytes() == b"old" and [f.name for f in tmp_path.iterdir()] == ["a"]


def test_what_a_check_refuses_is_not_written(tmp_path):
    """It sees the new content under a name with the same ending."""
    (tmp_path / "a.txt").write_bytes(b"old")

    def refuse(place):
        assert (place.suffix, place.read_bytes()) == (".txt", b"new")
        raise ValueError

    with pytest.raises(ValueError):
        files.save({tmp_path / "a.txt": b"new"}, refuse)
    assert (tmp_path / "a.txt").read_bytes() == b"old" and [f.name for f in tmp_path.iterdir()] == ["a.txt"]
