import pytest

import utils
from runtime.errors import UserError
from training.folder import run_folder


def arguments(tmp_path, *flags):
    return utils.parse(utils.Parser("a description"), ["--save_dir", str(tmp_path), *flags])


def test_run_folder(tmp_path):
    assert run_folder(arguments(tmp_path)) == tmp_path / "CIFAR10" / "resnet32"
    assert run_folder(arguments(tmp_path, "--version", "V1")) == tmp_path / "CIFAR10" / "resnet32_V1"
    assert run_folder(arguments(tmp_path), "OKDDip") == tmp_path / "CIFAR10" / "OKDDip" / "resnet32"
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_in_the_way(tmp_path):
    (tmp_path / "CIFAR10").write_text("")
    with pytest.raises(UserError, match="CIFAR10 is a file, but"):
        run_folder(arguments(tmp_path))


def test_a_run_is_not_overwritten(tmp_path):
    folder = tmp_path / "CIFAR10" / "resnet32"
    folder.mkdir(parents=True)
    assert run_folder(arguments(tmp_path)) == folder  # an empty folder is no run
    (folder / "parameters.json").write_text("{}")
    with pytest.raises(UserError, match="--resume.*--version.*--overwrite"):
        run_folder(arguments(tmp_path))
    assert run_folder(arguments(tmp_path, "--overwrite")) == folder
