"""Folders of images: which files are images, and the class folders of a data set."""

import os
from functools import cache
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, UnidentifiedImageError

from loading.data import Data, Split
from loading.images import DamagedFiles, each, first_of, missing
from runtime.errors import UserError, warn

NOT_READ = {"PDF", "PALM", "MPEG", "GRIB", "HDF5", "BUFR"}  # Pillow knows these formats, but cannot read them
MORE_ENDINGS = {".heic", ".heif", ".avif", ".jxl"}  # images; if Pillow cannot read them, that is an error
# Folders that systems add to those of users: in archives of macOS, a NAS's thumbnails, the recycle bin of Windows.
SYSTEM = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}


@cache
def endings() -> set[str]:
    """The file name endings of image formats, in lower case."""
    return MORE_ENDINGS | {ending for ending, kind in Image.registered_extensions().items() if kind not in NOT_READ}


def is_image(path: str) -> bool:
    """Whether a file should be an image: by its ending (``endings``), and without one by its first bytes."""
    ending = os.path.splitext(path)[1].lower()
    if ending:
        return ending in endings()
    if not os.path.isfile(path):  # a link that leads nowhere, a pipe: it is named when it is read
        return True
    try:
        with Image.open(path):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # of Pillow's readers; it is named when it is read
        return True


def hidden(name: str) -> bool:
    """Whether a file or folder is hidden or the system's: it may contain copies of images."""
    return name.startswith(".") or name in SYSTEM


def image_files(folder: str | os.PathLike) -> tuple[list[str], list[str]]:
    """-> the paths of the images in ``folder`` and below it, and those of the other files. Hidden ones are left out.

    UserError if a folder cannot be read, or if a link leads to a folder above itself.
    """
    found = []
    for path, names, files in os.walk(folder, followlinks=True, onerror=refuse):
        names[:] = [name for name in names if not hidden(name)]
        for name in names:
            refuse_circle(os.path.join(path, name))
        found.append((path, sorted(file for file in files if not hidden(file))))
    images, others = [], []
    for path, files in sorted(found):  # torchvision's order
        for file in files:
            file = os.path.join(path, file)
            (images if is_image(file) else others).append(file)
    return images, others


def refuse(error: OSError) -> NoReturn:
    """UserError for a folder that cannot be read: os.walk would leave it out."""
    raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error


def refuse_circle(path: str) -> None:
    """UserError if ``path`` is a link to a folder above itself: its images would be found endlessly."""
    if os.path.islink(path):
        link = Path(path)
        if link.resolve() in {above.resolve() for above in link.absolute().parents}:
            raise UserError(f"{link} is a link to a folder above itself ({link.resolve()}): remove the link")


def warn_of_other_files(others: list[str]) -> None:
    """One line about the files that are left out because their names are not those of images."""
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        warn(f"left out, not an image by its name: {others[0]}{more}")


# --- class folders


def class_folders(name: str, test_names: tuple[str, str], root: str | os.PathLike, test_only: bool) -> Data:
    """The files of <root>/train/<class>/*, and of val/ and test/.

    If both exist, the images of val/ are held out, to choose the best epoch, and those of test/ are the test images. If
    one exists, it has the test images. One without class folders is not used: ImageNet's own test images have no
    labels. name: of the data set. test_names: both, in the order in which errors name them. UserError if a folder is
    missing, or if classes are too few, empty or not the same.
    """
    train, (held_out, test) = Path(root, "train"), test_folders(root, test_names)
    directories = [test] if test_only else [d for d in (train, held_out, test) if d]
    for directory in directories:
        if not directory.is_dir():
            needed = " or ".join(f"{n}/<class>/*" for n in test_names)
            needed = needed if test_only else f"train/<class>/* and {needed}"
            raise UserError(f"{missing(directory)}: --dataset {name} needs a --data_dir with {needed} below it; "
                            "--dataset DIGITS needs no files")
    classes = check_classes(directories)
    splits, others = zip(*each(lambda directory: class_files(directory, classes), directories), strict=True)
    warn_of_other_files([file for files in others for file in files])
    found = dict(zip(directories, splits, strict=True))
    return Data(found.get(train), found[test], classes, held_out=found.get(held_out))


def test_folders(root: str | os.PathLike, test_names: tuple[str, str]) -> tuple[Path | None, Path]:
    """-> the folder of the held-out images, if there is one, and that of the test images."""
    both = Path(root, "val"), Path(root, "test")
    for folder in both:
        if folder.is_symlink() and not folder.exists():  # the other one would take its place
            raise UserError(missing(folder))
    there = [folder for folder in both if folder.is_dir()]
    used = [folder for folder in there if class_names(folder)]
    for folder in there:
        if used and folder not in used:
            warn(f"{folder} has no class folders and is not used")
    *held_out, test = used or there[:1] or [Path(root, test_names[0])]
    return (held_out[0] if held_out else None), test


def class_names(directory: Path) -> list[str]:
    """The names of the class folders in ``directory``, sorted. UserError if one cannot be read."""
    try:
        with os.scandir(directory) as entries:
            entries = sorted((entry for entry in entries if not hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        refuse(error)
    for entry in entries:
        if entry.is_symlink() and not os.path.exists(entry.path):  # it may have been a class
            raise UserError(missing(entry.path))
    return [entry.name for entry in entries if entry.is_dir()]


def check_classes(directories: list[Path]) -> list[str]:
    """-> the classes, which are the same in all of these folders. UserError if they are not, or fewer than two."""
    found = {directory: class_names(directory) for directory in directories}
    first, classes = directories[0], found[directories[0]]
    for directory, names in found.items():
        if not names:
            raise UserError(f"{directory} holds no folder: it must hold one for each class, with images in it")
        if differing := sorted(set(classes) ^ set(names)):
            raise UserError(f"{first} and {directory} must hold the same classes; only one of them has "
                            f"{first_of(differing)}")
    if len(classes) < 2:
        raise UserError(f"{first} holds one class, {classes[0]}: classification needs at least two")
    return classes


def class_files(directory: Path, classes: list[str]) -> tuple[Split, list[str]]:
    """-> the image files of these classes in ``directory``, and the other files. DamagedFiles if a class is empty."""
    paths, labels, others, empty = [], [], [], []
    for label, name in enumerate(classes):
        folder = os.path.join(directory, name)
        refuse_circle(folder)
        images, rest = image_files(folder)
        if not images:
            empty.append(f"{folder} holds no image" + (f" ({rest[0]} is not one by its name)" if rest else ""))
        # Paths as bytes in one array: workers share its memory. A list would soon be copied to each worker.
        paths += map(os.fsencode, images)
        labels += [label] * len(images)
        others += rest
    if empty:
        raise DamagedFiles(empty)
    return Split(np.array(paths), np.array(labels, dtype=np.int64)), others
