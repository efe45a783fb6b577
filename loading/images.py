"""Image files: read and decode them, and report those that cannot be used."""

import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from runtime.errors import UserError, first_words

NAMED = 10  # files in one error
Item, Result = TypeVar("Item"), TypeVar("Result")


def first_of(words: list[str], separator: str = ", ") -> str:
    """The first ten, and how many more there are."""
    more = [f"{len(words) - NAMED} more"] if len(words) > NAMED else []
    return separator.join(words[:NAMED] + more)


class DamagedFiles(UserError):
    """problems: a sentence about each file or folder. The message has ten of them, and their number."""

    def __init__(self, problems: list[str]):
        super().__init__(problems)  # so it can be pickled, for other processes
        self.problems = problems

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return f"{len(self.problems)} image files or folders cannot be used: {first_of(self.problems, '; ')}"


def attempt(function: Callable[[Item], Result], items: Iterable[Item]) -> tuple[list[Result], list[str]]:
    """-> function(item) of each item, and a sentence about each file or folder for which it raised UserError."""
    results, problems = [], []
    for item in items:
        try:
            results.append(function(item))
        except UserError as error:
            problems += error.problems if isinstance(error, DamagedFiles) else [str(error)]
    return results, problems


def each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """function(item) of each item. If it raises UserError for some of them, DamagedFiles has all of their sentences."""
    results, problems = attempt(function, items)
    if problems:
        raise DamagedFiles(problems)
    return results


# --- one file


def read(path: bytes) -> Image.Image:
    """An image file -> RGB image. UserError with the file's name if it is missing or does not decode."""
    name = os.fsdecode(path)
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):  # reading a pipe could wait forever
            raise ValueError("it is not a file, but a pipe, a socket, a device or a folder")
        with Image.open(name) as image:
            return upright_rgb(image)
    except FileNotFoundError as error:
        raise UserError(missing(name)) from error
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions for broken files
        reason = getattr(error, "strerror", None) or first_words(error)
        problem = "cannot be read" if isinstance(error, PermissionError) else "does not decode as an image"
        raise UserError(f"{name} {problem}: {reason}") from error


def upright_rgb(image: Image.Image, opened: Image.Image | None = None) -> Image.Image:
    """An image of any mode, in 8-bit RGB and not rotated. ValueError if the range of its pixels is unknown.

    opened: what it is a copy of. Pillow does not copy the format.
    """
    image.load()
    with suppress(Exception):  # metadata may be broken in many ways; image viewers ignore it, too
        ImageOps.exif_transpose(image, in_place=True)  # cameras store the rotation and do not rotate the pixels
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range, save it with 8 bits")
    if image.mode.startswith("I"):  # grey with more than 8 bits: convert would clip it
        image = eight_bits(image, opened or image)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy an RGB image


def missing(path: str | os.PathLike) -> str:
    """A sentence about a file or folder that does not exist. It names the target of a link."""
    link = f"is a link to {os.path.realpath(path)}, which " if os.path.islink(path) else ""
    return f"{path} {link}does not exist"


def eight_bits(image: Image.Image, opened: Image.Image) -> Image.Image:
    """Grey with 12 or 16 bits -> the upper 8. ValueError if the pixels have 32 bits or a sign: their range is unknown.

    Mode "I" has 32 bits, but for PNG files (in older Pillow) and PPM files its values are 0 to 65535. Pillow scales
    12 bits to 16, except in TIFF files.
    """
    if image.mode == "I" and opened.format not in ("PNG", "PPM"):
        raise ValueError("its pixels are integers of 32 bits or with a sign, of unknown range, save it with 8 bits")
    twelve = getattr(opened, "tag_v2", {}).get(TiffImagePlugin.BITSPERSAMPLE) == (12,)
    return Image.fromarray((np.asarray(image) // (16 if twelve else 256)).astype(np.uint8))


def read_fast(path: bytes) -> Image.Image | np.ndarray:
    """As ``read``, but simplejpeg decodes ordinary JPEG files: uint8 [H, W, 3].

    It is faster than Pillow. Both give the same pixels, because both use libjpeg-turbo. Other files, and those with
    errors, are left to ``read``.
    """
    import simplejpeg  # only --decoder fast needs it

    with suppress(Exception):  # ``read`` says what is wrong with the file
        if stat.S_ISREG(os.stat(path).st_mode):
            data = Path(os.fsdecode(path)).read_bytes()
            with Image.open(BytesIO(data)) as image:  # reads the header only
                upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
                if image.format == "JPEG" and image.mode in ("RGB", "L") and upright:
                    return simplejpeg.decode_jpeg(data)
    return read(path)


def decode(image: bytes | np.ndarray, size: int) -> np.ndarray:
    """The path of a file, or uint8 [H, W, 3] -> uint8 [size, size, 3], resized without keeping the aspect ratio.

    UserError as in ``read``.
    """
    if isinstance(image, np.ndarray) and image.shape[:2] == (size, size):
        return image
    image = read(image) if isinstance(image, bytes) else Image.fromarray(image)
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR))
