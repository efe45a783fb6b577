"""Data sets and their loaders.

    train_loader, test_loader = dataloader("CIFAR10", batch_size=128, num_workers=8, root="./Data")
    train_loader.set_epoch(0)
    for images, labels in train_loader: ...      # float32 [B, 3, 32, 32], normalised; int64 [B]

Another data set is one function and one line in DATASETS. loading/ holds the rest: it reads and augments the images and
makes the batches. The order, crops and flips of an epoch follow from (seed, epoch). So cached and streamed loaders give
the same batches, with any number of workers.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from loading.augmentation import DECODERS, Normalise, prepare_large
from loading.damaged import each, first_of
from loading.data import Data, Split
from loading.folders import class_folders
from loading.images import channel_statistics, constant, decode, in_memory
from loading.loaders import Cached, Loader, Streamed
from runtime import processes
from runtime.errors import UserError, warn

__all__ = ["CONSTANTS", "DATASETS", "DECODERS", "Cached", "Data", "Loader", "Normalise", "Split", "Streamed",
           "dataloader", "load_image", "normalisation", "sample_images", "test_images"]

CONSTANTS = {  # mean, std
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def cifar(kind: type[datasets.CIFAR10], root: str, test_only: bool = False) -> Data:
    """CIFAR-10 or CIFAR-100. torchvision downloads it if it is missing, and checks the MD5 sums."""
    missing = [place for place in (Path(root), *Path(root).parents) if not place.exists()]
    try:
        splits = [kind(root, train=train, download=True) for train in ((False,) if test_only else (True, False))]
    except (OSError, RuntimeError) as error:
        for place in missing:
            with suppress(OSError):
                place.rmdir()  # torchvision makes the folder before it downloads
        raise UserError(
            f"{kind.__name__} is not in {root} and could not be downloaded ({error}): put {kind.filename} from "
            f"{kind.url} there (MD5 {kind.tgz_md5}), or try --dataset DIGITS, which needs no download"
        ) from error
    *train, test = (Split(s.data, np.array(s.targets, dtype=np.int64)) for s in splits)
    return Data(train[0] if train else None, test, splits[0].classes, *CONSTANTS[kind.__name__])


def digits(root: str, test_only: bool = False) -> Data:
    """scikit-learn's 1,797 handwritten digits: 8x8 grey levels 0 to 16 -> 32x32 RGB. 360 of them are the test images.

    They come with scikit-learn. So every command of this project can be tried without a network.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    images, labels = np.stack([grey] * 3, axis=-1), bunch.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    return Data(Split(x_train, y_train), Split(x_test, y_test), [str(i) for i in range(10)], flip=False)


def folder(root: str, test_only: bool = False) -> Data:
    """Your own images, resized to 32x32: <root>/train/<class>/* and test/<class>/* or val/ or both (class_folders)."""
    splits = class_folders(root, "folder", ("test", "val"), test_only)
    return Data(splits.train, splits.test, splits.classes, held_out=splits.held_out)


def imagenet(root: str, test_only: bool = False) -> Data:
    """ImageNet as it is usually unpacked: <root>/train/<class>/* and val/<class>/* or test/ or both (class_folders)."""
    splits = class_folders(root, "imagenet", ("val", "test"), test_only)
    return Data(splits.train, splits.test, splits.classes, *CONSTANTS["imagenet"], large=True, held_out=splits.held_out)


DATASETS: dict[str, Callable[..., Data]] = {  # name -> function(root, test_only=False)
    "CIFAR10": partial(cifar, datasets.CIFAR10),
    "CIFAR100": partial(cifar, datasets.CIFAR100),
    "DIGITS": digits,
    "folder": folder,
    "imagenet": imagenet,
}


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

    The seed alone chooses them, in all versions of NumPy (RandomState is frozen). A smaller one is part of a larger.
    """
    n, counts = len(split.labels), np.bincount(split.labels)
    order = np.random.RandomState(seed % 2**32).permutation(n)
    order = order[np.argsort(split.labels[order], kind="stable")]  # class by class; within a class in random order
    place = np.concatenate([np.arange(count) for count in counts])
    quantile = np.where(place == 0, 0, (place + 0.5) / counts.repeat(counts))  # of each image, in its class
    order = order[np.argsort(quantile, kind="stable")]
    return split.take(np.sort(order[:size])), split.take(np.sort(order[size:]))


def divide(data: Data, train_size: int, val_size: int, seed: int) -> tuple[Split, Split | None]:
    """-> the images to train on (train_size 0: all others), and the held-out ones: the data set's own, or val_size
    others. None if there are none.

    With a train_size, the training images are the same for every seed, and the seed chooses the held-out ones from the
    rest. UserError if a size does not fit.
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


# --- loaders


def dataloader(data_name: str, batch_size: int = 128, num_workers: int = 8, root: str = "./Data", *, seed: int = 0,
               device: str | torch.device = "cpu", cache: bool = True, val_size: int = 0,
               train_size: int = 0, views: int = 1, decoder: str = "pil") -> tuple[Loader, Loader]:
    """-> train_loader, test_loader of one of DATASETS.

    num_workers: threads that decode image files; if images are streamed, processes.
    cache: keep all images on the device. Without it, and always for imagenet, they are streamed.
    val_size: training images to hold out, stratified, if the data set has no held-out images of its own.
        train_loader.held_out is the loader of the held-out images, without augmentation.
    train_size: training images to train on, stratified, the same for every seed (0: all that are not held out).
    views: with more than one, train_loader augments each image so often, each time with another crop and flip: images
        [B, views, 3, H, W]. Evaluation has one view.
    decoder: of imagenet's files, one of DECODERS; "fast" differs from "pil" by rounding.
    UserError if the data cannot be read or a number does not fit them.

    Of several processes (runtime.processes.start) the first one reads the data before the others: it may download them.
    """
    device = torch.device(device)
    check_decoder(decoder, data_name)

    def load() -> tuple[Loader, Loader]:
        data = read_data(data_name, root, cache, num_workers, val_size)
        train, held_out = divide(data, train_size, val_size, seed)
        smallest = min(len(split.labels) for split in (data.test, held_out) if split)
        check_batch_size(data_name, batch_size, len(train.labels), smallest)
        streamed = partial(Streamed, num_workers=num_workers, decoder=decoder)
        make = streamed if data.large or not cache else Cached
        train_loader = make(train, data, batch_size, device, seed, augment=True, views=views)
        test_batch = evaluation_batch(batch_size, data, device)
        if held_out:
            train_loader.held_out = make(held_out, data, test_batch, device)
        return train_loader, make(data.test, data, test_batch, device)

    return processes.main_first(load)


def check_decoder(decoder: str, data_name: str) -> None:
    """UserError if --decoder is unknown, does not fit the data set, or needs a package that is not installed."""
    if decoder not in DECODERS:
        raise UserError(f"unknown decoder {decoder!r}; known are {', '.join(DECODERS)}")
    if decoder == "fast" and data_name != "imagenet":
        raise UserError(f"--decoder fast is for the large images of --dataset imagenet, not for {data_name}")
    if decoder == "fast" and not find_spec("simplejpeg"):
        raise UserError("--decoder fast needs a package that is not installed: pip install simplejpeg")


def read_data(data_name: str, root: str, cache: bool, num_workers: int, val_size: int) -> Data:
    """The data set with its mean and std. If it will be cached, its files are decoded.

    UserError if that fails, or if there is a val_size but the data set has held-out images of its own.
    """
    if data_name not in DATASETS:
        raise UserError(f"unknown dataset {data_name!r}; known are {', '.join(DATASETS)}")
    data = DATASETS[data_name](root)
    if data.held_out and val_size:
        raise UserError(f"--val_size {val_size} and {Path(root, 'val')} both hold out images to choose the best epoch: "
                        "leave out --val_size, or rename the folder")
    splits = {"train": data.train, "held_out": data.held_out, "test": data.test}
    if cache and not data.large:
        splits = dict(zip(splits, each(lambda split: split and in_memory(split, num_workers), splits.values()),
                          strict=True))
        data = data._replace(**splits)
    warn_if_constant(data_name, {"training": data.train, "held-out": data.held_out, "test": data.test})
    if not data.mean:  # measured on all training images: a network's constants do not depend on the sizes
        mean, std = channel_statistics(data.train, num_workers)
        data = data._replace(mean=mean, std=std)
    return data


def warn_if_constant(data_name: str, splits: dict[str, Split | None]) -> None:
    """A warning if, in a split, each image has one colour. splits: by their names."""
    if names := [name for name, split in splits.items() if split and constant(split.images)]:
        warn(f"each of the {' and '.join(names)} images of {data_name} has one colour in all its pixels: look at "
             "the files, they may be empty or saved with numbers of another range")


def check_batch_size(data_name: str, batch_size: int, num_train: int, num_evaluated: int) -> None:
    """UserError if a batch does not fit the training images, or the processes do not fit a batch or an evaluation.

    num_evaluated: the number of images in the smallest split that is evaluated.
    """
    if not 1 <= batch_size <= num_train:
        raise UserError(f"--batch_size must lie between 1 and the {num_train} training images of "
                        f"{data_name}, not {batch_size}")
    world_size = processes.world_size()
    if batch_size % world_size:
        raise UserError(f"--batch_size {batch_size} cannot be shared out evenly among {world_size} processes")
    if world_size > num_evaluated:
        raise UserError(f"there are fewer images to evaluate than the {world_size} processes")


def evaluation_batch(batch_size: int, data: Data, device: torch.device) -> int:
    """The batch size of an evaluation. GPUs have room for more; on CPUs larger batches were slower."""
    least = processes.world_size() * (256 if data.large else 1024) if device.type == "cuda" else 1
    return max(batch_size, least)


def test_images(data_name: str, batch_size: int = 128, num_workers: int = 8, root: str = "./Data", *, mean: Sequence,
                std: Sequence, device: str | torch.device = "cpu", cache: bool = True, decoder: str = "pil") -> Loader:
    """The test_loader of ``dataloader`` alone, normalised by a network's own mean and std.

    No training image is read. Of a folder data set, train/ may be missing.
    """
    check_decoder(decoder, data_name)
    data, device = DATASETS[data_name](root, test_only=True), torch.device(device)
    data = data._replace(mean=tuple(mean), std=tuple(std))
    batch_size = evaluation_batch(batch_size, data, device)
    streamed = data.large or not cache
    test = data.test if streamed else in_memory(data.test, num_workers)
    warn_if_constant(data_name, {"test": test})
    if streamed:
        return Streamed(test, data, batch_size, device, num_workers=num_workers, decoder=decoder)
    return Cached(test, data, batch_size, device)


def normalisation(data_name: str, num_workers: int = 8, root: str = "./Data") -> tuple[tuple, tuple]:
    """-> the mean and std of ``dataloader``: the data set's constants, or measured on its training images."""
    return CONSTANTS.get(data_name) or channel_statistics(DATASETS[data_name](root).train, num_workers)


def sample_images(data_name: str, root: str, count: int) -> Tensor | None:
    """Up to ``count`` of the test images, uint8 [N, H, W, 3]. None if they are not there: nothing is downloaded."""
    try:
        if data_name in ("CIFAR10", "CIFAR100"):
            images, large = getattr(datasets, data_name)(root, train=False).data, False
        else:
            data = DATASETS[data_name](root, test_only=True)
            images, large = data.test.images, data.large
        images = images[np.unique(np.linspace(0, len(images) - 1, count).astype(int))]
        if images.dtype.kind != "S":
            return torch.from_numpy(images)
        return torch.stack([load_image(os.fsdecode(path), large) for path in images])
    except (UserError, OSError, RuntimeError):  # RuntimeError: torchvision's, if CIFAR is missing
        return None


def load_image(path: str, large: bool) -> Tensor:
    """A file, prepared as a test image: uint8 [32, 32, 3]; large: [224, 224, 3]. UserError if it does not decode."""
    return prepare_large(os.fsencode(path))[0] if large else torch.from_numpy(decode(os.fsencode(path)))
