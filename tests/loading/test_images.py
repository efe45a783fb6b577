"""One image file: its pixels, or a sentence about what is wrong with it. Errors that name several files."""

import os
import pickle
import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from deployment.formats import preprocess
from loading.folders import image_files
from loading.images import DamagedFiles, attempt, each, read, read_fast
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
    "broken metadata": ("RGB", {"format": "WEBP", "exif": b"no TIFF header"}, False),
    "broken metadata of JPEG": ("RGB", {"format": "JPEG", "exif": b"Exif\0\0no TIFF", "dpi": (72, 72)}, False),
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
    yield from (content[:n] for n in range(0, len(content), 397))
    rng = np.random.default_rng(0)
    for place in range(len(content) // 4, len(content), 211):  # behind the header
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


def tiff(order, bits, signed, data):
    """A TIFF file with one row of grey pixels."""
    fields = [(256, 8 * len(data) // bits), (257, 1), (258, bits), (262, 1), (273, 200), (278, 1), (279, len(data)),
              (339, 2 if signed else 1)]
    directory = b"".join(struct.pack(f"{order}HHI", tag, 4, 1) + struct.pack(f"{order}I", value)
                         for tag, value in fields)
    header = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return (header + struct.pack(f"{order}H", len(fields)) + directory).ljust(200, b"\0") + data


LEVELS = [0, 1000, 30000, 65535]  # of 16 bits
DEEP = {  # file -> its content: LEVELS
    "little.tiff": tiff("<", 16, False, struct.pack("<4H", *LEVELS)),
    "big.tiff": tiff(">", 16, False, struct.pack(">4H", *LEVELS)),
    "twelve.tiff": tiff("<", 12, False, b"\x00\x00\x3e\x75\x3f\xff"),  # 0, 0x03e, 0x753, 0xfff
    "x.pgm": b"P5 4 1 65535\n" + struct.pack(">4H", *LEVELS),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_of_grey_are_scaled(tmp_path, name):
    """Little and big end first, 12 bits, and mode "I" with 16 bits."""
    (tmp_path / name).write_bytes(DEEP[name])
    pixels = np.array(read(os.fsencode(tmp_path / name)))
    assert pixels[0].tolist() == [[level // 256] * 3 for level in LEVELS]
    x = preprocess(2, [0] * 3, [1] * 3, Image.open(tmp_path / name))  # of a Pillow image, as .preprocess does it
    assert x.equal(preprocess(2, [0] * 3, [1] * 3, Image.fromarray(pixels)))


def test_16_bit_png_files_are_scaled_in_older_pillow_too(tmp_path, monkeypatch):
    """It opened them in mode "I"."""
    monkeypatch.setitem(PngImagePlugin._MODES, (16, 0), ("I", "I;16B"))
    Image.fromarray(np.array([LEVELS], dtype=np.uint16)).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode == "I"
    assert np.array(read(os.fsencode(tmp_path / "x.png")))[0].tolist() == [[level // 256] * 3 for level in LEVELS]


UNKNOWN_RANGE = {  # file -> its content, 4 grey pixels from 0 to 200
    "big.tiff": tiff(">", 32, True, struct.pack(">4i", 0, 50, 100, 200)),
    "unsigned.tiff": tiff("<", 32, False, struct.pack("<4I", 0, 50, 100, 200)),
    "signed.tiff": tiff("<", 16, True, struct.pack("<4h", 0, 50, 100, 200)),
}


@pytest.mark.parametrize("name", UNKNOWN_RANGE)
def test_integers_of_unknown_range_are_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(UNKNOWN_RANGE[name])
    with pytest.raises(UserError, match=f"{name} .* integers of 32 bits or with a sign, of unknown range, save it"):
        read(os.fsencode(path))


@pytest.mark.parametrize("reader", [read, read_fast])
def test_a_missing_file_is_not_called_damaged(tmp_path, reader):
    (tmp_path / "link.jpg").symlink_to("lost.jpg")
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    for name, said in (("no.jpg", "no.jpg does not exist"), ("itself.jpg", "itself.jpg .*: Too many levels .* links"),
                       ("link.jpg", f"link.jpg is a link to {tmp_path}/lost.jpg, which does not exist")):
        with pytest.raises(UserError, match=f"^{tmp_path}/{said}$"):
            reader(os.fsencode(tmp_path / name))


def test_what_is_no_file_is_named_and_not_read(tmp_path):
    """Reading a named pipe waits until somebody writes into it."""
    os.mkfifo(tmp_path / "x.jpg")
    os.mkfifo(tmp_path / "no_ending")
    (tmp_path / "y.jpg").symlink_to("/dev/zero")
    assert len(image_files(tmp_path)[0]) == 3
    for name in ("x.jpg", "y.jpg", "no_ending"):
        with pytest.raises(UserError, match=f"{name} does not decode as an image: it is not a file, but a pipe"):
            read(os.fsencode(tmp_path / name))


# --- several files


def test_results_and_problems():
    def halved(number):
        if number % 2:
            raise UserError(f"{number} is odd")
        return number // 2

    assert attempt(halved, [1, 2, 3, 4]) == ([1, 2], ["1 is odd", "3 is odd"]) and each(halved, [2, 4]) == [1, 2]
    nested = attempt(lambda numbers: each(halved, numbers), [[1, 2, 3], [4, 6], [5]])
    assert nested == ([[2, 3]], ["1 is odd", "3 is odd", "5 is odd"])
    assert pickle.loads(pickle.dumps(DamagedFiles(nested[1]))).problems == nested[1]  # it travels between processes
