import os
import socket

import numpy as np
import pytest
from image_data import random_data
from PIL import Image

from data_loader import dataloader
from loading.images import channel_statistics, decode, read, read_fast
from runtime.errors import UserError

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((97, 61))
TURNED = Image.Exif()
TURNED[274] = 6  # orientation: a quarter turn to the right
FILES = {  # name -> the mode and how it is saved; whether simplejpeg decodes it, not Pillow
    "ordinary": ("RGB", {"format": "JPEG"}, True),
    "progressive": ("RGB", {"format": "JPEG", "progressive": True}, True),
    "grey": ("L", {"format": "JPEG"}, True),
    "full colour": ("RGB", {"format": "JPEG", "subsampling": 0, "quality": 100}, True),
    "CMYK": ("CMYK", {"format": "JPEG"}, False),
    "turned": ("RGB", {"format": "JPEG", "exif": TURNED}, False),
    "turned grey": ("L", {"format": "JPEG", "exif": TURNED}, False),
    "16 bits": ("I;16", {"format": "PNG"}, False),
    "transparent": ("RGBA", {"format": "PNG"}, False),
    "palette": ("P", {"format": "GIF"}, False),
    "WebP": ("RGB", {"format": "WEBP"}, False),
}


@pytest.mark.parametrize("kind", FILES)
def test_both_decoders_give_the_same_pixels(tmp_path, kind):
    mode, how, by_simplejpeg = FILES[kind]
    image = PHOTO.convert("L").convert(mode) if mode.startswith("I") else PHOTO.convert(mode)
    path = tmp_path / "x.JPEG"  # ImageNet has other formats under this ending, too
    image.save(path, **how)
    pil, fast = read(os.fsencode(path)), read_fast(os.fsencode(path))
    assert isinstance(fast, np.ndarray) == by_simplejpeg
    assert pil.size == ((61, 97) if "turned" in kind else (97, 61))
    assert np.array_equal(fast, pil)


def damaged_files(content):
    """The content of a JPEG file, cut off at many places, with wrong bytes, without bytes, with more bytes."""
    yield from (content[:n] for n in range(0, len(content), 97))
    rng = np.random.default_rng(0)
    for place in range(len(content) // 4, len(content), 41):  # behind the header
        noise = rng.integers(0, 256, 5, dtype=np.uint8).tobytes()
        yield content[:place] + noise + content[place + 5 :]
        yield content[:place] + content[place + 40 :]
        yield content[:place] + noise + content[place:]


def test_both_decoders_treat_damaged_files_alike(tmp_path):
    """The same pixels, or the same error: Pillow refuses truncated files and shows what is left of others."""
    path = tmp_path / "x.jpg"
    PHOTO.save(path)

    def outcome(reader):
        try:
            return np.array(reader(os.fsencode(path))).tobytes()
        except UserError as error:
            return str(error)

    outcomes = []
    for content in damaged_files(path.read_bytes()):
        path.write_bytes(content)
        outcomes.append(outcome(read))
        assert outcome(read_fast) == outcomes[-1]
    assert {type(o) for o in outcomes} == {bytes, str}


def test_16_bits_of_grey_are_scaled_not_clipped(tmp_path):
    deep = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    grey = decode(os.fsencode(tmp_path / "deep.png"))
    assert (grey == (deep // 256)[..., None]).all()
    Image.fromarray(np.full((32, 32), 70000, dtype=np.int32)).save(tmp_path / "deeper.tiff")
    assert (decode(os.fsencode(tmp_path / "deeper.tiff")) == 255).all()


def test_pixels_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(UserError, match="x.tiff .* floating-point numbers of unknown range"):
        read(os.fsencode(tmp_path / "x.tiff"))


def test_channel_statistics():
    split = random_data(7).train
    mean, std = channel_statistics(split)
    assert mean == pytest.approx((split.images / 255).mean((0, 1, 2)), abs=0.50001e-4)
    assert std == pytest.approx((split.images / 255).std((0, 1, 2)), abs=0.50001e-4)
    assert all(round(value, 4) == value for value in mean + std)


def test_a_constant_channel_can_be_divided_by_its_deviation():
    """It gets the deviation of one level."""
    split = random_data(7).train
    split.images[..., 1] = 51
    mean, std = channel_statistics(split)
    assert (mean[1], std[1]) == (0.2, 0.0039) and std[0] > 0.2


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
