"""Data sets and their loaders.

    train_loader, test_loader = dataloader("CIFAR10", batch_size=128, num_workers=8, root="./Data")
    train_loader.set_epoch(0)
    for images, labels in train_loader: ...      # float32 [B, 3, 32, 32], normalised; int64 [B]

To add a data set, write one function and one line in DATASETS. loading/ reads and augments the images and makes the
batches. The order, crops and flips of an epoch depend only on (seed, epoch), so cached and streamed loaders give the
same batches, with any number of workers.
"""

import os
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from loading.augmentation import DECODERS, Normalise, preparation
from loading.data import Data, Split, divide, fewer_if_large, is_large
from loading.folders import class_folders
from loading.loaders import Cached, Loader, Streamed
from runtime import processes
from runtime.errors import UserError

__all__ = ["DATASETS", "DECODERS", "Cached", "Data", "Loader", "Normalise", "Split", "Streamed", "dataloader",
           "load_image", "normalisation", "test_images"]


def cifar(kind: type[datasets.CIFAR10], root: str, test_only: bool = False) -> Data:
    """CIFAR-10 or CIFAR-100. torchvision downloads it if it is missing, and checks the MD5 sums."""
    try:
        splits = [kind(root, train=train, download=True) for train in ((False,) if test_only else (False, True))]
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{kind.__name__} is not in {root} and could not be downloaded ({error}): put {kind.filename} from "
            f"{kind.url} there (MD5 {kind.tgz_md5}), or try --dataset DIGITS, which needs no download"
        ) from error
    test, *train = (Split(s.data, np.array(s.targets, dtype=np.int64)) for s in splits)
    return Data(train[0] if train else None, test, splits[0].classes)


def digits(root: str, test_only: bool = False) -> Data:
    """scikit-learn's 1,797 handwritten digits: 8x8 grey levels 0 to 16 -> 32x32 RGB. 360 of them are the test images.

    They are part of scikit-learn, so every command of this project can be tried without a download.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    images, labels = np.stack([grey] * 3, axis=-1), bunch.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    return Data(Split(x_train, y_train), Split(x_test, y_test), [str(i) for i in range(10)])


DATASETS = {
    "CIFAR10": Data(read=partial(cifar, datasets.CIFAR10), size=32,
                    mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    "CIFAR100": Data(read=partial(cifar, datasets.CIFAR100), size=32,
                     mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
    "DIGITS": Data(read=digits, size=32, flip=False),
    # your own images: <root>/train/<class>/* and test/<class>/* or val/ or both
    "folder": Data(read=partial(class_folders, "folder", ("test", "val")), size=32),
    # as it is usually unpacked: <root>/train/<class>/* and val/<class>/* or test/ or both
    "imagenet": Data(read=partial(class_folders, "imagenet", ("val", "test")), size=224,
                     mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}


def dataloader(data_name: str, batch_size: int = 128, num_workers: int = 8, root: str = "./Data", *, seed: int = 0,
               device: str | torch.device = "cpu", cache: bool = True, val_size: int = 0,
               train_size: int = 0, views: int = 1, decoder: str = "pil", image_size: int | None = None,
               normalisation: tuple[Sequence, Sequence] | None = None) -> tuple[Loader, Loader]:
    """-> train_loader, test_loader of one of DATASETS.

    num_workers: threads that decode image files; if images are streamed, processes.
    cache: keep all images on the device. Large images, and all without it, are streamed.
    val_size: training images to hold out, stratified, if the data set has no held-out images of its own.
        train_loader.held_out is the loader of the held-out images, without augmentation.
    train_size: training images to train on, stratified, the same for every seed (0: all that are not held out).
    views: how many times train_loader augments each image, each time with its own crop and flip. With several views,
        images are [B, views, 3, H, W]. Evaluation has one view.
    decoder: of large images, one of DECODERS; "fast" differs from "pil" by rounding.
    image_size: height and width of the images, instead of the data set's. Above 64 they are large: prepared as
        ImageNet's and streamed.
    normalisation: mean and std instead of the data set's.
    UserError if the data cannot be read or a size does not fit.

    If there are several processes, the first one reads the data before the others, because it may download them. It
    alone measures their mean and std.
    """
    device = torch.device(device)
    data = processes.main_first(
        lambda: read_data(data_name, root, cache, num_workers, decoder, val_size, image_size=image_size))
    # They are measured on all training images: they do not depend on train_size and val_size.
    mean, std = normalisation or processes.on_main(lambda: data.mean_and_std(num_workers))
    data = data._replace(mean=tuple(mean), std=tuple(std))

    def load() -> tuple[Loader, Loader]:
        train, held_out = divide(data, train_size, val_size, seed)
        smallest = min(len(split.labels) for split in (data.test, held_out) if split)
        check_batch_size(data_name, batch_size, len(train.labels), smallest)
        loader = partial(make_loader, data, device=device, num_workers=num_workers, decoder=decoder)
        evaluated = evaluation_batch(batch_size, data, device)
        train_loader = loader(train, batch_size, seed=seed, augment=True, views=views)
        if held_out:
            train_loader.held_out = loader(held_out, evaluated)
        return train_loader, loader(data.test, evaluated)

    return processes.main_first(load)


def test_images(data_name: str, batch_size: int = 128, num_workers: int = 8, root: str = "./Data", *, mean: Sequence,
                std: Sequence, device: str | torch.device = "cpu", cache: bool = True, decoder: str = "pil",
                image_size: int | None = None) -> Loader:
    """The test_loader of ``dataloader`` alone, normalised by a network's own mean and std.

    No training image is read. Of a folder data set, train/ may be missing.
    """
    device = torch.device(device)
    data = read_data(data_name, root, cache, num_workers, decoder, test_only=True, image_size=image_size)
    data = data._replace(mean=tuple(mean), std=tuple(std))
    return make_loader(data, data.test, evaluation_batch(batch_size, data, device), device, num_workers, decoder)


def read_data(data_name: str, root: str, cache: bool, num_workers: int, decoder: str, val_size: int = 0,
              test_only: bool = False, image_size: int | None = None) -> Data:
    """The data set, with its image files decoded if it is cached.

    UserError if it is unknown, missing or damaged, if the decoder does not fit, or if there is a val_size but the data
    set has held-out images of its own.
    """
    if data_name not in DATASETS:
        raise UserError(f"unknown dataset {data_name!r}; known are {', '.join(DATASETS)}")
    data = DATASETS[data_name]
    data = data._replace(size=image_size or data.size)
    large = is_large(data.size)
    if decoder not in DECODERS:
        raise UserError(f"unknown decoder {decoder!r}; known are {', '.join(DECODERS)}")
    if decoder == "fast" and not large:
        raise UserError("--decoder fast is for the large images of --dataset imagenet or of --image_size above 64, not "
                        f"for {data_name}")
    if decoder == "fast" and not find_spec("simplejpeg"):
        raise UserError("--decoder fast needs a package that is not installed: pip install simplejpeg")
    data = data.load(root, test_only)._replace(cached=cache and not large)
    if data.held_out and val_size:
        raise UserError(f"--val_size {val_size} and {Path(root, 'val')} both hold out images to choose the best epoch: "
                        "leave out --val_size, or rename the folder")
    return data.decoded(num_workers) if data.cached else data


def make_loader(data: Data, split: Split, batch_size: int, device: torch.device, num_workers: int, decoder: str,
                **augmentation) -> Loader:
    """The loader of one split. augmentation: seed, augment, views, as in ``Loader``."""
    if data.cached:
        return Cached(split, data, batch_size, device, **augmentation)
    return Streamed(split, data, batch_size, device, num_workers=num_workers, decoder=decoder, **augmentation)


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
        raise UserError(f"there are fewer images to evaluate than the {world_size} processes: start fewer processes")


def evaluation_batch(batch_size: int, data: Data, device: torch.device) -> int:
    """The batch size of an evaluation. GPUs have room for more; on CPUs larger batches were slower."""
    least = fewer_if_large(256, data.size) if is_large(data.size) else 1024
    return max(batch_size, processes.world_size() * least) if device.type == "cuda" else batch_size


def normalisation(data_name: str, num_workers: int = 8, root: str = "./Data") -> tuple[tuple, tuple]:
    """-> mean and std as in ``dataloader``: the data set's constants, or measured on its training images."""
    data = DATASETS[data_name]
    return (data if data.mean else data.load(root)).mean_and_std(num_workers)


def load_image(path: str, size: int) -> Tensor:
    """A file, prepared as a test image: uint8 [size, size, 3]. UserError if it does not decode."""
    return preparation(size)(os.fsencode(path))[0]
