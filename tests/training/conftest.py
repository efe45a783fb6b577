"""Runs that several tests of this folder compare with or continue."""

import pytest
from image_data import make_images
from processes import FLAGS

import train
import train_GL
import utils


@pytest.fixture
def arguments(tmp_path):
    """arguments(flags...) -> those of a script without flags of its own, on the CPU."""
    return lambda *flags: utils.parse(utils.Parser("a description"), ["--save_dir", str(tmp_path), "--device", "cpu",
                                                                      *flags])


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def teacher(images, tmp_path_factory):
    root = tmp_path_factory.mktemp("teacher")
    train.main([*FLAGS[2:], "--model", "resnet14", "--data_dir", str(images), "--num_epochs", "1", "--save_dir",
                str(root)])
    return root / "folder" / "resnet14"


@pytest.fixture(scope="session")
def flags(images):
    """Epochs of three steps."""
    return [*FLAGS, "--length", "3", "--num_epochs", "4", "--data_dir", str(images)]


@pytest.fixture
def baseline(images, tmp_path):
    """The flags of a baseline, and its folder. The number of epochs is missing."""
    return ([*FLAGS, "--data_dir", str(images), "--save_dir", str(tmp_path), "--num_epochs"],
            tmp_path / "folder" / "resnet8")


@pytest.fixture(scope="session")
def whole(flags, tmp_path_factory):
    """Four epochs of OKDDip without an interruption."""
    root = tmp_path_factory.mktemp("whole")
    train_GL.main([*flags, "--save_dir", str(root)])
    return root / "folder" / "OKDDip" / "resnet8"


@pytest.fixture
def begun(flags, tmp_path):
    """The same after its first epoch."""
    train_GL.main([*flags, "--save_dir", str(tmp_path / "begun"), "--num_epochs", "1"])
    folder = tmp_path / "begun" / "folder" / "OKDDip" / "resnet8"
    (folder / "summary.json").unlink()
    return folder
