"""Datasets and their loaders: images live on the training device as one uint8 tensor, a batch is augmented at once.

    train_loader, test_loader = dataloader("CIFAR10", batch_size=128, num_workers=8, root="./Data")
    train_loader.set_epoch(0)
    for images, labels in train_loader: ...      # float32 [B, 3, 32, 32], normalised; int64 [B]

Which images an epoch shows, in which order, cropped and flipped how: all of it follows from (seed, epoch).
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets

from errors import UserError

SIZE, PADDING = 32, 4
SHIFTS = 2 * PADDING + 1  # a crop of the padded image starts at one of 9 rows and 9 columns


class Split(NamedTuple):
    """images: uint8 [N, 32, 32, 3]; labels: int64 [N]."""

    images: np.ndarray
    labels: np.ndarray


class Data(NamedTuple):
    """A dataset in memory. mean, std: of each channel, for pixels in 0..1. flip: mirroring keeps the class."""

    train: Split
    test: Split
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True


def cifar(kind: type[datasets.CIFAR10], mean: tuple, std: tuple, root: str, num_workers: int) -> Data:
    """CIFAR-10 or -100 through torchvision, which downloads it where it is absent and checks the MD5 sums."""
    try:
        splits = [kind(root, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{kind.__name__} is not in {root} and could not be downloaded ({error}): put {kind.filename} from "
            f"{kind.url} there (MD5 {kind.tgz_md5}), or try --dataset DIGITS, which needs no download"
        ) from error
    train, test = (Split(s.data, np.array(s.targets, dtype=np.int64)) for s in splits)
    return Data(train, test, splits[0].classes, mean, std)


def cifar10(root: str, num_workers: int) -> Data:
    return cifar(datasets.CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), root, num_workers)


def cifar100(root: str, num_workers: int) -> Data:
    return cifar(datasets.CIFAR100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), root, num_workers)


def digits(root: str, num_workers: int) -> Data:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey levels 0..16 -> 32x32 RGB; 360 of them, stratified, to test.

    They come with scikit-learn, so that every command of this project runs where there is no network.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    images, labels = np.stack([grey] * 3, axis=-1), bunch.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    train = Split(x_train, y_train)
    return Data(train, Split(x_test, y_test), [str(i) for i in range(10)], *channel_statistics(train), flip=False)


def folder(root: str, num_workers: int) -> Data:
    """Any <root>/train/<class>/* with test/ or val/ beside it, resized to 32x32."""
    train_dir = Path(root, "train")
    test_dir = next((Path(root, name) for name in ("test", "val") if Path(root, name).is_dir()), Path(root, "test"))
    for directory in (train_dir, test_dir):
        if not directory.is_dir():
            raise UserError(
                f"{directory} does not exist: --dataset folder needs a --data_dir with train/<class>/* and "
                "test/<class>/* (or val/<class>/*) below it; --dataset DIGITS needs no files"
            )
    try:
        found = [datasets.ImageFolder(directory) for directory in (train_dir, test_dir)]
    except (FileNotFoundError, OSError) as error:
        raise UserError(f"{root}: {error}") from error
    train_classes, test_classes = (f.classes for f in found)
    if train_classes != test_classes:
        differing = ", ".join(sorted(set(train_classes) ^ set(test_classes)))
        raise UserError(f"{train_dir} and {test_dir} must hold the same classes; only one of them has {differing}")
    if len(train_classes) < 2:
        raise UserError(f"{train_dir} holds one class, {train_classes[0]}: classification needs at least two")
    train, test = (decode_all(f.samples, num_workers) for f in found)
    return Data(train, test, train_classes, *channel_statistics(train))


def decode_all(samples: list[tuple[str, int]], num_workers: int) -> Split:
    paths, labels = zip(*samples, strict=True)
    with ThreadPoolExecutor(max(1, min(num_workers, os.cpu_count() or 1))) as pool:
        try:
            images = np.stack(list(pool.map(decode, paths, chunksize=64)))
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
    return Split(images, np.array(labels, dtype=np.int64))


def decode(path: str) -> np.ndarray:
    """An image file -> uint8 [32, 32, 3]; UserError naming it where it does not decode."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} does not decode as an image: {error}") from error


def channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, exactly, from the counts of the 256 levels."""
    levels = np.arange(256) / 255
    counts = np.stack([np.bincount(split.images[..., c].reshape(-1), minlength=256) for c in range(3)])
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1)).clip(1 / 255)  # a constant channel stays finite
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())


DATASETS: dict[str, Callable[[str, int], Data]] = {
    "CIFAR10": cifar10,
    "CIFAR100": cifar100,
    "DIGITS": digits,
    "folder": folder,
}


class Loader:
    """Batches of one split, which lives on ``device``.

    augment: draw a permutation, crops and flips anew for each epoch; without, the images pass in order as they are.
    """

    def __init__(self, split: Split, data: Data, batch_size: int, device: torch.device, seed: int = 0,
                 augment: bool = False):
        self.classes, self.num_classes = data.classes, len(data.classes)
        self.mean, self.std = data.mean, data.std
        self.batch_size, self.device, self.seed, self.epoch = batch_size, device, seed, 0
        self.augment, self.flip = augment, data.flip
        images = torch.from_numpy(np.ascontiguousarray(split.images))
        if augment:
            images = pad(images)
        self.images = images.to(device)
        self.labels = torch.from_numpy(split.labels).to(device)
        self.normalise = Normalise(data.mean, data.std, device)

    @property
    def num_images(self) -> int:
        return len(self.labels)

    def bounds(self) -> list[tuple[int, int]]:
        """First and last image of each batch; a training batch of one joins the batch before (BatchNorm needs two)."""
        starts = list(range(0, self.num_images, self.batch_size))
        if self.augment and len(starts) > 1 and self.num_images - starts[-1] < 2:
            starts.pop()
        return list(zip(starts, starts[1:] + [self.num_images], strict=True))

    def __len__(self) -> int:
        return len(self.bounds())

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def draws(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The epoch's permutation, first rows and columns of the crops, and flips: each [N], drawn on the CPU.

        On the CPU, so that every device sees the same images.
        """
        state = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        n = self.num_images
        order = torch.randperm(n, generator=generator)
        top, left = torch.randint(SHIFTS, (2, n), generator=generator)
        flips = torch.rand(n, generator=generator) < 0.5 if self.flip else torch.zeros(n, dtype=torch.bool)
        return order, top, left, flips

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches()

    def batches(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The epoch's batches from the ``first`` on: images float32 [B, 3, 32, 32] (channels_last), labels [B]."""
        bounds = self.bounds()[first:]
        if not self.augment:
            for a, b in bounds:
                yield self.normalise(self.images[a:b]), self.labels[a:b]
            return
        order, top, left, flips = (t.to(self.device) for t in self.draws())
        for a, b in bounds:
            images = crop_and_flip(self.images, order[a:b], top[a:b], left[a:b], flips[a:b])
            yield self.normalise(images), self.labels[order[a:b]]


def pad(images: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] -> [N, H + 8, W + 8, 3], black around: zeros before normalising."""
    n, height, width, channels = images.shape
    padded = images.new_zeros(n, height + 2 * PADDING, width + 2 * PADDING, channels)
    padded[:, PADDING:-PADDING, PADDING:-PADDING] = images
    return padded


def crop_and_flip(padded: Tensor, index: Tensor, top: Tensor, left: Tensor, flips: Tensor) -> Tensor:
    """Images ``index`` of padded [N, H + 8, W + 8, 3], each cropped at its own corner and mirrored -> [B, H, W, 3].

    One gather: the H x W windows of all images at all corners are a view, [N, 9, 9, H, 3 W], of overlapping memory.
    """
    n, height, width, channels = padded.shape
    height, width = height - 2 * PADDING, width - 2 * PADDING
    image, row, column = padded.stride()[:3]
    windows = padded.as_strided((n, SHIFTS, SHIFTS, height, width * channels), (image, row, column, row, 1))
    crops = windows[index, top, left].view(-1, height, width, channels)
    return torch.where(flips[:, None, None, None], crops.flip(2), crops)


class Normalise:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in channels_last: (x / 255 - mean) / std, torchvision's bits."""

    def __init__(self, mean: tuple, std: tuple, device: torch.device):
        self.mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(std, device=device).view(3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).to(torch.float32)
        return x.div_(255).sub_(self.mean).div_(self.std)


def dataloader(data_name: str, batch_size: int = 128, num_workers: int = 8, root: str = "./Data", *, seed: int = 0,
               device: str | torch.device = "cpu") -> tuple[Loader, Loader]:
    """-> train_loader, test_loader of CIFAR10, CIFAR100, DIGITS or folder (any <root>/{train,test}/<class>/*).

    num_workers: threads that decode image files. UserError, in one sentence, where the data cannot be had.
    """
    if data_name not in DATASETS:
        raise UserError(f"unknown dataset {data_name!r}; known are {', '.join(DATASETS)}")
    data = DATASETS[data_name](root, num_workers)
    if not 1 <= batch_size <= len(data.train.labels):
        raise UserError(f"--batch_size must lie between 1 and the {len(data.train.labels)} training images of "
                        f"{data_name}, not {batch_size}")
    device = torch.device(device)
    train = Loader(data.train, data, batch_size, device, seed, augment=True)
    return train, Loader(data.test, data, batch_size, device)
