"""A data set: its images, their properties, and which of them are held out."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from loading.images import decode, each, first_of
from runtime.errors import UserError


def is_large(size: int) -> bool:
    """Whether images of this height and width are augmented as ImageNet's and streamed, instead of as CIFAR's."""
    return size > 64


def usable_workers(num_workers: int) -> int:
    """``num_workers``, but not more than the cores that this process may use."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(num_workers, len(cores))


class Split(NamedTuple):
    """images: uint8 [N, size, size, 3], or the paths of N files as bytes [N]; labels: int64 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def take(self, rows: np.ndarray) -> "Split":
        """The images and labels of these rows."""
        return Split(self.images[rows], self.labels[rows])


class Data(NamedTuple):
    """A data set: its properties, and after ``load`` its images.

    train: None if only the test images were loaded.
    held_out: the data set's own held-out images, which choose the best epoch, if it has any.
    size: height and width of the images that a network gets.
    mean, std: of each channel, for pixels between 0 and 1. Empty: they are measured on the training images.
    flip: whether a mirrored image keeps its class.
    cached: whether all images are kept on the device. Otherwise they are streamed: read again in each epoch.
    read: function(root, test_only) -> Data with the splits and the classes.
    """

    train: Split | None = None
    test: Split | None = None
    classes: Sequence[str] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    flip: bool = True
    size: int = 32
    held_out: Split | None = None
    cached: bool = True
    read: Callable[[str, bool], "Data"] | None = None

    def load(self, root: str, test_only: bool = False) -> "Data":
        """The same with its splits and classes. Files are listed, not read. UserError if they are not there."""
        found = self.read(root, test_only)
        return self._replace(train=found.train, test=found.test, held_out=found.held_out, classes=found.classes)

    def decoded(self, num_workers: int) -> "Data":
        """The same with all images in memory. DamagedFiles has all files that do not decode."""
        def in_memory(split: Split | None) -> Split | None:
            if split is None or split.images.shape[1:3] == (self.size, self.size):
                return split
            return Split(np.concatenate(map_blocks(np.asarray, split, self.size, num_workers)), split.labels)

        train, held_out, test = each(in_memory, (self.train, self.held_out, self.test))
        return self._replace(train=train, held_out=held_out, test=test)

    def mean_and_std(self, num_workers: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Those that it has, or else those of the training images, to four decimals.

        They are computed from the counts of the 256 levels, so rounding errors do not accumulate.
        """
        def count(block: np.ndarray) -> np.ndarray:  # [B, H, W, 3] -> [3, 256]
            return np.stack([np.bincount(block[..., c].reshape(-1), minlength=256) for c in range(3)])

        if self.mean:
            return self.mean, self.std
        counts = sum(map_blocks(count, self.train, self.size, num_workers))
        levels, share = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)  # [256], [3, 256]
        mean = share @ levels  # [3]
        std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1)).clip(1 / 255)  # not 0 for a constant channel
        return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())


def map_blocks(function: Callable[[np.ndarray], np.ndarray], split: Split, size: int,
               num_workers: int) -> list[np.ndarray]:
    """Apply ``function`` to each block of images, uint8 [B, size, size, 3], in ``num_workers`` threads.

    Files are decoded block by block, so the images need not fit into memory. DamagedFiles names all files that do not
    decode.
    """
    def work(block: np.ndarray) -> np.ndarray:
        return function(np.stack(each(lambda image: decode(image, size), block)))

    with ThreadPoolExecutor(max(1, usable_workers(num_workers))) as pool:
        at_once = fewer_if_large(256, size)
        blocks = np.split(split.images, range(at_once, len(split.images), at_once))
        try:
            return each(Future.result, [pool.submit(work, block) for block in blocks])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C: the others need not be decoded


def fewer_if_large(images: int, size: int) -> int:
    """How many images of size x size take the memory of ``images`` images of 224x224; at least one, not more."""
    return max(1, min(images, images * 224**2 // size**2))


# --- sizes: --train_size, --val_size


def hold_out(split: Split, size: int, seed: int, names: Sequence[str]) -> tuple[Split, Split]:
    """-> the images to train on, and ``size`` held-out images: stratified, and chosen by the seed alone.

    names: of the classes. UserError if the size does not fit, or if a class has one image.
    """
    from sklearn.model_selection import train_test_split

    found, counts = np.unique(split.labels, return_counts=True)
    n, classes = len(split.labels), len(found)
    if not classes <= size < n:
        raise UserError(f"--val_size must lie between the {classes} classes and the {n} training images, not {size}")
    if single := [names[label] for label in found[counts == 1]]:
        raise UserError(f"--val_size {size} holds out images of each class, but there is only one training image of "
                        f"{first_of(single)}: add images, remove such classes, or leave out --val_size")
    if n - size < classes:
        raise UserError(f"--val_size {size} leaves {n - size} training images for {classes} classes: it must be at "
                        f"most {n - classes}")
    rows = train_test_split(np.arange(n), test_size=size, random_state=seed % 2**32, stratify=split.labels)
    rest, held_out = (split.take(np.sort(r)) for r in rows)
    return rest, held_out


def proportional(split: Split, size: int, seed: int = 0) -> tuple[Split, Split]:
    """-> ``size`` of the images, and the others: stratified, with at least one image of each class.

    The seed alone chooses them, in all versions of NumPy (RandomState is frozen). A smaller selection is part of a
    larger one.
    """
    n, counts = len(split.labels), np.bincount(split.labels)
    order = np.random.RandomState(seed % 2**32).permutation(n)
    order = order[np.argsort(split.labels[order], kind="stable")]  # class by class; within a class in random order
    place = np.concatenate([np.arange(count) for count in counts])
    quantile = np.where(place == 0, 0, (place + 0.5) / counts.repeat(counts))  # of each image, in its class
    order = order[np.argsort(quantile, kind="stable")]
    return split.take(np.sort(order[:size])), split.take(np.sort(order[size:]))


def divide(data: Data, train_size: int, val_size: int, seed: int) -> tuple[Split, Split | None]:
    """-> the images to train on, and the held-out ones: the data set's own, or ``val_size`` of the training images, or
    None.

    train_size: the number of images to train on, the same for every seed; the seed chooses the held-out ones from the
    rest. 0: all that are not held out. UserError if a size does not fit.
    """
    split = data.train
    if not train_size:
        return hold_out(split, val_size, seed, data.classes) if val_size else (split, data.held_out)
    n, classes = len(split.labels), len(np.unique(split.labels))
    if not classes <= train_size <= n:
        raise UserError(f"--train_size must lie between the {classes} classes and the {n} training images, not "
                        f"{train_size}")
    train, rest = proportional(split, train_size)
    if not val_size:
        return train, data.held_out
    if not classes <= val_size <= len(rest.labels):
        raise UserError(f"--val_size must be at least the {classes} classes and at most the {len(rest.labels)} "
                        f"training images that --train_size {train_size} leaves, not {val_size}")
    return train, proportional(rest, val_size, seed)[0]
