import pytest

from runtime.errors import UserError
from training.folder import run_folder


def test_run_folder(arguments, tmp_path):
    assert run_folder(arguments()) == tmp_path / "CIFAR10" / "resnet32"
    assert run_folder(arguments("--version", "V1")) == tmp_path / "CIFAR10" / "resnet32_V1"
    assert run_folder(arguments(), "OKDDip") == tmp_path / "CIFAR10" / "OKDDip" / "resnet32"
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_in_the_way(arguments, tmp_path):
    (tmp_path / "CIFAR10").write_text("")
    with pytest.raises(UserError, match="CIFAR10 is a file, but"):
        run_folder(arguments())


def test_a_run_is_not_overwritten(arguments, tmp_path):
    folder = tmp_path / "CIFAR10" / "resnet32"
    folder.mkdir(parents=True)
    assert run_folder(arguments()) == folder  # an empty folder is no run
    (folder / "parameters.json").write_text("{}")
    with pytest.raises(UserError, match="--resume.*--version.*--overwrite"):
        run_folder(arguments())
    assert run_folder(arguments("--overwrite")) == folder
