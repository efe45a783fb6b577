import os
import socket

import numpy as np
import pytest
from image_data import random_data
from PIL import Image

from data_loader import dataloader
from loading.images import channel_statistics, decode
from runtime.errors import UserError


def test_16_bits_of_grey_are_scaled_not_clipped(tmp_path):
    deep = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    grey = decode(os.fsencode(tmp_path / "deep.png"))
    assert grey[..., 0] == pytest.approx(deep / 257, abs=1.01) and (grey[..., 0] == grey[..., 2]).all()


def test_channel_statistics():
    split = random_data(7).train
    mean, std = channel_statistics(split)
    assert mean == pytest.approx((split.images / 255).mean((0, 1, 2)), abs=1e-4)
    assert std == pytest.approx((split.images / 255).std((0, 1, 2)), abs=1e-4)


def test_any_number_of_threads_gives_the_same_images(image_folder):
    root = image_folder()
    a, b = (dataloader("folder", 8, workers, root)[0] for workers in (0, 4))
    assert a.images.equal(b.images) and a.labels.equal(b.labels)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_named_and_not_read(image_folder, kind):
    """Reading a named pipe waits until somebody writes into it."""
    root = image_folder(train=1, test=1)
    path = root / "train" / "red" / "x.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            here = os.getcwd()
            os.chdir(path.parent)  # the path of a socket must be short
            listener.bind(path.name)
            os.chdir(here)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="x.jpg does not decode as an image: it is not a file, but a pipe") as error:
        dataloader("folder", 2, 2, root)
    assert "\n" not in str(error.value)
