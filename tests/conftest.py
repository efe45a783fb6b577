import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    """The file that takes longest first: the files are shared out, and none should be left to one core at the end."""
    items.sort(key=lambda item: item.path.name != "test_scripts.py")


@pytest.fixture
def script(tmp_path):
    """script("train.py", "--model", ...) runs it as a user does, in an empty folder; -> the finished process."""

    def start(name, *flags, cwd=tmp_path, **environment):
        command = [sys.executable, ROOT / name, *map(str, flags)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | environment)

    return start


@pytest.fixture
def image_folder(tmp_path):
    """A data set as users have them: real files, JPEG and PNG, of two classes told apart by their colour."""

    def make(root=tmp_path / "images", train=20, test=7, size=(40, 36)):
        rng = np.random.default_rng(0)
        for part, count in (("train", train), ("test", test)):
            for shift, name in ((0, "blue"), (120, "red")):
                directory = root / part / name
                directory.mkdir(parents=True)
                for i in range(count):
                    pixels = rng.integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
                    pixels[..., 0] += np.uint8(shift)
                    Image.fromarray(pixels).save(directory / f"{i}.{'png' if i % 2 else 'jpg'}")
        return root

    return make
