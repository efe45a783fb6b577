"""Runs that several tests of this folder compare with or continue."""

import pytest
from kill import FLAGS, make_images, make_teacher
from processes import TINY, Training

import train_GL
import utils


@pytest.fixture
def arguments(tmp_path):
    """arguments(flags...) -> those of a script without flags of its own, on the CPU."""
    return lambda *flags: utils.parse(utils.Parser("a description"), ["--save_dir", str(tmp_path), "--device", "cpu",
                                                                      *flags])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def teacher(images, tmp_path_factory):
    return make_teacher(images, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def flags(images):
    return [*FLAGS, "--length", "3", "--num_epochs", "4", "--data_dir", str(images)]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """Four epochs of OKDDip without an interruption."""
    root = tmp_path_factory.mktemp("whole")
    training = Training("train_GL", [*flags, "--save_dir", root], root)
    assert training.wait() == 0, training.said()
    return root / "folder" / "OKDDip" / "resnet8"


@pytest.fixture
def begun(flags, tmp_path):
    """The same after its first epoch."""
    train_GL.main([*flags, "--save_dir", str(tmp_path / "begun"), "--num_epochs", "1"])
    folder = tmp_path / "begun" / "folder" / "OKDDip" / "resnet8"
    (folder / "summary.json").unlink()
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Three epochs of OKDDip on the digits."""
    root = tmp_path_factory.mktemp("finished")
    train_GL.main([*TINY, "--num_epochs", "3", "--save_dir", str(root)])
    return root / "DIGITS" / "OKDDip" / "resnet8"
