"""Image files: read and decode them, and measure their pixels."""

import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from loading.damaged import DamagedFiles, each
from loading.data import Split
from loading.workers import usable_workers
from runtime.errors import UserError, first_words

SIZE = 32


def read(path: bytes) -> Image.Image:
    """An image file -> RGB image. UserError with the file's name if it is missing or does not decode."""
    name = os.fsdecode(path)
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):  # reading a pipe could wait forever
            raise ValueError("it is not a file, but a pipe, a socket, a device or a folder")
        with Image.open(name) as image:
            ImageOps.exif_transpose(image, in_place=True)  # cameras store the rotation and do not rotate the pixels
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers of unknown range, save it with 8 bits")
            if image.mode.startswith("I"):  # grey with more than 8 bits: convert would clip it
                image = eight_bits(image)
            if image.mode != "RGB":
                return image.convert("RGB")
            image.load()  # not convert, which copies an RGB image
            return image
    except FileNotFoundError as error:
        raise UserError(missing(name)) from error
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions for broken files
        reason = getattr(error, "strerror", None) or first_words(error)
        problem = "cannot be read" if isinstance(error, PermissionError) else "does not decode as an image"
        raise UserError(f"{name} {problem}: {reason}") from error


def missing(path: str | os.PathLike) -> str:
    """A sentence about a file or folder that does not exist. Of a link, it names where the link leads."""
    link = f"is a link to {os.path.realpath(path)}, which " if os.path.islink(path) else ""
    return f"{path} {link}does not exist"


def eight_bits(image: Image.Image) -> Image.Image:
    """Grey with 12 or 16 bits -> the upper 8. ValueError if the pixels have 32 bits or a sign: their range is unknown.

    Mode "I" has 32 bits, but of PNG files (in older Pillow) and PPM files it holds numbers from 0 to 65535. Pillow
    scales 12 bits to 16, but not those of TIFF files.
    """
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ValueError("its pixels are integers of 32 bits or with a sign, of unknown range, save it with 8 bits")
    twelve = getattr(image, "tag_v2", {}).get(TiffImagePlugin.BITSPERSAMPLE) == (12,)
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


def decode(path: bytes) -> np.ndarray:
    """An image file -> uint8 [32, 32, 3]. UserError as in ``read``."""
    return np.array(read(path).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def map_blocks(function: Callable[[np.ndarray], np.ndarray], split: Split, num_workers: int) -> list[np.ndarray]:
    """Apply ``function`` to each block of up to 256 images, uint8 [256, 32, 32, 3], in ``num_workers`` threads.

    Files are decoded block by block. So a split in files is measured without all of its images in memory.
    DamagedFiles if some do not decode: all files are read, to know all of these.
    """
    def work(block: np.ndarray) -> np.ndarray | DamagedFiles:
        try:
            return function(np.stack(each(decode, block)) if split.in_files else block)
        except DamagedFiles as damaged:
            return damaged

    with ThreadPoolExecutor(max(1, usable_workers(num_workers))) as pool:
        results = list(pool.map(work, np.split(split.images, range(256, len(split.images), 256))))
    if problems := [p for result in results if isinstance(result, DamagedFiles) for p in result.problems]:
        raise DamagedFiles(problems)
    return results


def in_memory(split: Split, num_workers: int) -> Split:
    """The split with its files decoded by ``num_workers`` threads. DamagedFiles if some do not decode."""
    if not split.in_files:
        return split
    return Split(np.concatenate(map_blocks(np.asarray, split, num_workers)), split.labels)


def channel_statistics(split: Split, num_workers: int = 0) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, for pixels between 0 and 1, to four decimals.

    They are computed from the counts of the 256 levels, so no error adds up.
    """
    def count(block: np.ndarray) -> np.ndarray:  # [B, 32, 32, 3] -> [3, 256]
        return np.stack([np.bincount(block[..., c].reshape(-1), minlength=256) for c in range(3)])

    levels, counts = np.arange(256) / 255, sum(map_blocks(count, split, num_workers))
    share = counts / counts.sum(1, keepdims=True)  # [3, 256]
    mean = share @ levels  # [3]
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1)).clip(1 / 255)  # not 0 for a constant channel
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())


def constant(images: np.ndarray) -> bool:
    """Whether each image, of files the first 256, has one colour. Usually the first image shows that it is not so."""
    files = images[:256] if images.dtype.kind == "S" else images
    try:
        return all(not np.ptp(decode(image) if isinstance(image, bytes) else image, (0, 1)).any() for image in files)
    except UserError:  # it is reported when the file's batch is read
        return False
