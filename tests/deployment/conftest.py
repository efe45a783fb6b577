"""Fixtures that several tests of deployment/ share."""

import pytest
from PIL import Image

import data_loader


@pytest.fixture
def pictures(tmp_path):
    """A test image of the digits as PNG files of several kinds, and one large JPEG. -> their paths, the pixels."""
    split = data_loader.digits("").test
    grey = Image.fromarray(split.images[3]).convert("L")
    kinds = {"rgb.png": grey.convert("RGB"), "grey.png": grey, "rgba.png": grey.convert("RGBA"),
             "palette.png": grey.convert("P"),
             "large.jpg": Image.fromarray(split.images[5]).resize((700, 500), Image.Resampling.BILINEAR)}
    for name, image in kinds.items():
        image.save(tmp_path / name)
    return [tmp_path / name for name in kinds], split.images[3]
