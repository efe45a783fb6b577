"""Datasets and their loaders.

    train_loader, test_loader = dataloader("CIFAR10", batch_size=128, num_workers=8, root="./Data")
    train_loader.set_epoch(0)
    for images, labels in train_loader: ...      # float32 [B, 3, 32, 32], normalised; int64 [B]

Cached: the images live on the training device as one uint8 tensor, and a batch is augmented at once. Streamed: worker
processes read and augment them one at a time, with torchvision. Which images an epoch shows, in which order, cropped
and flipped how: all of it follows from (seed, epoch), so both give the same batches, with any number of workers.
"""

import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import datasets
from torchvision.transforms import v2

from runtime import processes
from runtime.errors import UserError

SIZE, PADDING = 32, 4
SHIFTS = 2 * PADDING + 1  # a crop of the padded image starts at one of 9 rows and 9 columns


class Split(NamedTuple):
    """images: uint8 [N, 32, 32, 3], or the paths of N files; labels: int64 [N]."""

    images: np.ndarray
    labels: np.ndarray

    @property
    def in_files(self) -> bool:
        """Whether ``images`` are paths."""
        return self.images.dtype.kind == "S"

    def take(self, rows: np.ndarray) -> "Split":
        """The images and labels of these rows."""
        return Split(self.images[rows], self.labels[rows])


class Data(NamedTuple):
    """A dataset. mean, std: of each channel, for pixels in 0..1; none: to be measured on the training images.

    train: None where only the test images were asked for. flip: mirroring keeps the class. large: 224x224, prepared as
    ImageNet is, and always streamed.
    """

    train: Split | None
    test: Split
    classes: list[str]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    flip: bool = True
    large: bool = False


# --- datasets -------------------------------------------------------------------------------------------------------


CONSTANTS = {  # mean, std
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def cifar(kind: type[datasets.CIFAR10], root: str, test_only: bool = False) -> Data:
    """CIFAR-10 or -100 through torchvision, which downloads it where it is absent and checks the MD5 sums."""
    try:
        splits = [kind(root, train=train, download=True) for train in ((False,) if test_only else (True, False))]
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{kind.__name__} is not in {root} and could not be downloaded ({error}): put {kind.filename} from "
            f"{kind.url} there (MD5 {kind.tgz_md5}), or try --dataset DIGITS, which needs no download"
        ) from error
    *train, test = (Split(s.data, np.array(s.targets, dtype=np.int64)) for s in splits)
    return Data(train[0] if train else None, test, splits[0].classes, *CONSTANTS[kind.__name__])


def digits(root: str, test_only: bool = False) -> Data:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey levels 0..16 -> 32x32 RGB; 360 of them, stratified, to test.

    They come with scikit-learn, so that every command of this project runs where there is no network.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    images, labels = np.stack([grey] * 3, axis=-1), bunch.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    return Data(Split(x_train, y_train), Split(x_test, y_test), [str(i) for i in range(10)], flip=False)


def folder(root: str, test_only: bool = False) -> Data:
    """Any <root>/train/<class>/* with test/ or val/ beside it, resized to 32x32."""
    return Data(*class_folders(root, "folder", ("test", "val"), test_only))


def imagenet(root: str, test_only: bool = False) -> Data:
    """<root>/train/<class>/* and <root>/val/<class>/*, as ILSVRC2012 is usually unpacked."""
    return Data(*class_folders(root, "imagenet", ("val",), test_only), *CONSTANTS["imagenet"], large=True)


def class_folders(root: str, name: str, test_names: tuple[str, ...],
                  test_only: bool) -> tuple[Split | None, Split, list[str]]:
    """-> the files of <root>/train and of the first of ``test_names`` that is there, and their classes' names."""
    train_dir = Path(root, "train")
    test_dir = next((Path(root, n) for n in test_names if Path(root, n).is_dir()), Path(root, test_names[0]))
    directories = [test_dir] if test_only else [train_dir, test_dir]
    for directory in directories:
        if not directory.is_dir():
            needed = " or ".join(f"{n}/<class>/*" for n in test_names)
            needed = needed if test_only else f"train/<class>/* and {needed}"
            raise UserError(f"{directory} does not exist: --dataset {name} needs a --data_dir with {needed} below it; "
                            "--dataset DIGITS needs no files")
    try:
        found = [datasets.ImageFolder(directory, is_valid_file=lambda path: not Path(path).name.startswith("."))
                 for directory in directories]
    except OSError as error:
        raise UserError(f"{root}: {error}") from error
    classes = found[0].classes
    if classes != found[-1].classes:
        differing = ", ".join(sorted(set(classes) ^ set(found[-1].classes)))
        raise UserError(f"{train_dir} and {test_dir} must hold the same classes; only one of them has {differing}")
    if len(classes) < 2:
        raise UserError(f"{directories[0]} holds one class, {classes[0]}: classification needs at least two")
    # Paths as bytes of one array: workers share its memory, whereas each would soon have its own copy of a list.
    *train, test = (Split(np.array([os.fsencode(path) for path, _ in f.samples]), np.array(f.targets, dtype=np.int64))
                    for f in found)
    return train[0] if train else None, test, classes


DATASETS: dict[str, Callable[..., Data]] = {
    "CIFAR10": partial(cifar, datasets.CIFAR10),
    "CIFAR100": partial(cifar, datasets.CIFAR100),
    "DIGITS": digits,
    "folder": folder,
    "imagenet": imagenet,
}


def hold_out(split: Split, size: int, seed: int) -> tuple[Split, Split]:
    """-> the split without ``size`` of its images, and these: each class in proportion, drawn by the seed alone."""
    from sklearn.model_selection import train_test_split

    n, classes = len(split.labels), len(np.unique(split.labels))
    if not classes <= size < n:
        raise UserError(f"--val_size must lie between the {classes} classes and the {n} training images, not {size}")
    try:
        rows = train_test_split(np.arange(n), test_size=size, random_state=seed % 2**32, stratify=split.labels)
    except ValueError as error:  # a class with too few images
        raise UserError(f"--val_size {size} cannot be held out in proportion to the classes: {error}") from error
    rest, held_out = (split.take(np.sort(r)) for r in rows)
    return rest, held_out


def proportional(split: Split, size: int, seed: int = 0) -> tuple[Split, Split]:
    """-> ``size`` of the images, and the others: each class in proportion, but at least one of each.

    Drawn by the seed alone, in all versions of NumPy (its RandomState is frozen); a smaller draw is part of a larger.
    """
    n, counts = len(split.labels), np.bincount(split.labels)
    order = np.random.RandomState(seed % 2**32).permutation(n)
    order = order[np.argsort(split.labels[order], kind="stable")]  # class by class, in each as drawn
    place = np.concatenate([np.arange(count) for count in counts])
    quantile = np.where(place == 0, 0, (place + 0.5) / counts.repeat(counts))  # of an image in its class
    order = order[np.argsort(quantile, kind="stable")]
    return split.take(np.sort(order[:size])), split.take(np.sort(order[size:]))


def divide(split: Split, train_size: int, val_size: int, seed: int) -> tuple[Split, Split | None]:
    """-> the images to train on (train_size 0: all that are left), and those that are held out (None for none).

    The first are the same for every seed, which draws the others from the rest.
    """
    if not train_size:
        return hold_out(split, val_size, seed) if val_size else (split, None)
    n, classes = len(split.labels), len(np.unique(split.labels))
    if not classes <= train_size <= n:
        raise UserError(f"--train_size must lie between the {classes} classes and the {n} training images, not "
                        f"{train_size}")
    train, rest = proportional(split, train_size)
    if not val_size:
        return train, None
    if not classes <= val_size <= len(rest.labels):
        raise UserError(f"--val_size must be at least the {classes} classes and at most the {len(rest.labels)} "
                        f"training images that --train_size {train_size} leaves, not {val_size}")
    return train, proportional(rest, val_size, seed)[0]


# --- reading files ----------------------------------------------------------------------------------------------------


def read(path: bytes) -> Image.Image:
    """An image file -> RGB image; UserError naming it where it does not decode."""
    try:
        with Image.open(os.fsdecode(path)) as image:
            image = ImageOps.exif_transpose(image)  # cameras do not turn the pixels
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers of unknown range, save it with 8 bits")
            if image.mode.startswith("I"):  # 16 bits of grey, which convert would clip
                image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
            return image.convert("RGB")
    except Exception as error:  # a broken file makes Pillow raise whatever its decoders come upon
        reason = " ".join(str(error).split())
        raise UserError(f"{os.fsdecode(path)} does not decode as an image: {reason}") from error


def decode(path: bytes) -> np.ndarray:
    """An image file -> uint8 [32, 32, 3]."""
    return np.array(read(path).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def in_blocks(split: Split, num_workers: int, function: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """function of each block of 256 images, as uint8 [256, 32, 32, 3], in ``num_workers`` threads.

    In blocks, so that a split in files need not fit in memory to be measured.
    """
    def work(block: np.ndarray) -> np.ndarray:
        return function(np.stack([decode(path) for path in block]) if split.in_files else block)

    with ThreadPoolExecutor(max(1, at_most_all_cores(num_workers))) as pool:
        try:
            return list(pool.map(work, np.split(split.images, range(256, len(split.images), 256))))
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise


def at_most_all_cores(num_workers: int) -> int:
    """No more workers than cores that this process may use."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(num_workers, len(cores))


def in_memory(split: Split, num_workers: int) -> Split:
    """The split with its files decoded, by ``num_workers`` threads; UserError where one cannot be."""
    if not split.in_files:
        return split
    return Split(np.concatenate(in_blocks(split, num_workers, np.asarray)), split.labels)


def channel_statistics(split: Split, num_workers: int = 0) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, exactly, from the counts of the 256 levels."""
    def count(block: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(block[..., c].reshape(-1), minlength=256) for c in range(3)])

    levels, counts = np.arange(256) / 255, sum(in_blocks(split, num_workers, count))
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1)).clip(1 / 255)  # a constant channel stays finite
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())


# --- loaders ----------------------------------------------------------------------------------------------------------


class Loader:
    """Batches of one split: ``Cached`` or ``Streamed``.

    augment: draw a permutation, crops and flips anew for each epoch; without, the images pass in order as they are.
    held_out: the loader of the images that are held out of these (--val_size), if any.
    """

    def __init__(self, split: Split, data: Data, batch_size: int, device: torch.device, seed: int = 0,
                 augment: bool = False):
        self.classes, self.num_classes, self.num_images = data.classes, len(data.classes), len(split.labels)
        self.mean, self.std = data.mean, data.std
        self.batch_size, self.device, self.seed, self.epoch = batch_size, device, seed, 0
        self.augment, self.flip, self.large = augment, data.flip, data.large
        self.normalise = Normalise(data.mean, data.std, device)
        self.held_out: Loader | None = None

    def bounds(self) -> list[tuple[int, int]]:
        """First and last image of each batch, all processes together.

        A last batch of less than two images to a process joins the one before in training (BatchNorm needs two), one of
        less than one in evaluation.
        """
        starts = list(range(0, self.num_images, self.batch_size))
        least = processes.world_size() * (2 if self.augment else 1)
        if len(starts) > 1 and self.num_images - starts[-1] < least:
            starts.pop()
        return list(zip(starts, starts[1:] + [self.num_images], strict=True))

    def parts(self, first: int = 0) -> list[tuple[int, int]]:
        """This process's part of each batch from the ``first`` on."""
        return [processes.part(a, b) for a, b in self.bounds()[first:]]

    def shares(self, first: int = 0) -> list[float]:
        """How many images of a batch are this process's, in relation to an equal share: 1 where all have as many.

        Weighed so, the processes' mean of their losses is the mean over the batch's images.
        """
        parts = zip(self.bounds()[first:], self.parts(first), strict=True)
        return [(end - begin) * processes.world_size() / (b - a) for (a, b), (begin, end) in parts]

    def __len__(self) -> int:
        return len(self.bounds())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose draws the next batches follow."""
        self.epoch = epoch

    def draws(self) -> tuple[Tensor, ...]:
        """The epoch's permutation, then what the image at each place of it is augmented with: each [N].

        32x32: first row and column of the crop, and whether to flip. Large: a seed for torchvision's own draws.
        Drawn on the CPU, so that every device sees the same images.
        """
        state = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        n = self.num_images
        order = torch.randperm(n, generator=generator)
        if self.large:
            return order, torch.randint(2**63 - 1, (n,), generator=generator)
        top, left = torch.randint(SHIFTS, (2, n), generator=generator)
        flips = torch.rand(n, generator=generator) < 0.5 if self.flip else torch.zeros(n, dtype=torch.bool)
        return order, top, left, flips

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches()

    def batches(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of each of the epoch's batches from the ``first`` on: images float32 [B, 3, H, W] in
        channels_last, labels [B]."""
        raise NotImplementedError


class Cached(Loader):
    """The split lives on the device as one uint8 tensor."""

    def __init__(self, split: Split, *args, **kwargs):
        super().__init__(split, *args, **kwargs)
        images = torch.from_numpy(np.ascontiguousarray(split.images))
        self.images = (pad(images) if self.augment else images).to(self.device)
        self.labels = torch.from_numpy(split.labels).to(self.device)

    def batches(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        parts = self.parts(first)
        if not self.augment:
            for a, b in parts:
                yield self.normalise(self.images[a:b]), self.labels[a:b]
            return
        order, top, left, flips = (t.to(self.device) for t in self.draws())
        for a, b in parts:
            images = crop_and_flip(self.images, order[a:b], top[a:b], left[a:b], flips[a:b])
            yield self.normalise(images), self.labels[order[a:b]]


class Streamed(Loader):
    """Each image is read and augmented when its turn comes, in ``num_workers`` processes (0: in this one).

    A batch travels as uint8, a quarter of the bytes, and is normalised on the device, as a cached one is. UserError
    where a file does not decode. One pass at a time: starting another ends the one before.
    """

    def __init__(self, split: Split, *args, num_workers: int = 0, **kwargs):
        super().__init__(split, *args, **kwargs)
        self.sampler, workers = Sampler(), at_most_all_cores(num_workers)
        # batch_size None: the items that DataLoader loads are whole batches. The generator is for a number that it
        # draws and nobody needs here: drawn from torch's own one, it would change what the training draws.
        self.loader = DataLoader(
            Batches(split, prepare_large if self.large else prepare), batch_size=None, sampler=self.sampler,
            num_workers=workers, persistent_workers=workers > 0, pin_memory=self.device.type == "cuda",
            generator=torch.Generator(), worker_init_fn=leave_signals_to_the_parent)

    def batches(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        self.sampler.draws = self.draws() if self.augment else (torch.arange(self.num_images),)
        self.sampler.parts = self.parts(first)
        for batch in self.loader:
            if isinstance(batch, str):
                raise UserError(batch)
            images, labels = (t.to(self.device, non_blocking=True) for t in batch)
            yield self.normalise(images), labels


def leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C, and a batch system's SIGTERM, reach every process of a job: the training then finishes its step, for
    which it may need its workers. They end when it does, or when it is the one that tells them to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=exit_when_the_parent_says, daemon=True).start()


def exit_when_the_parent_says() -> None:
    parent = multiprocessing.parent_process()  # not getppid: that may be a server which starts processes
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)


class Sampler:
    """The batches of an epoch, each as the list of its images' (index, what it is augmented with...).

    The draws go to the workers with the index, so a worker needs to know neither the epoch nor its own number.
    """

    draws: tuple[Tensor, ...]
    parts: list[tuple[int, int]]

    def __iter__(self) -> Iterator[list[tuple]]:
        for a, b in self.parts:
            yield list(zip(*(t[a:b].tolist() for t in self.draws), strict=True))


class Batches(Dataset):
    """What a worker does: a batch's keys from the sampler -> images uint8 [B, H, W, 3], labels int64 [B].

    A UserError's text is handed over in their place: raised here, DataLoader would put a traceback into it.
    """

    def __init__(self, split: Split, prepare: Callable[..., Tensor]):
        self.split, self.prepare = split, prepare

    def __getitem__(self, keys: list[tuple]) -> tuple[Tensor, Tensor] | str:
        try:
            return default_collate([(self.prepare(self.split.images[index], *draws), self.split.labels[index])
                                    for index, *draws in keys])
        except UserError as error:
            return str(error)


# --- augmentation -----------------------------------------------------------------------------------------------------


def prepare(image: np.ndarray | bytes, top: int = PADDING, left: int = PADDING, flip: bool = False) -> Tensor:
    """uint8 [32, 32, 3] or the path of a file -> padded, cropped and mirrored (default: as it is), the same shape."""
    pixels = torch.from_numpy(decode(image) if isinstance(image, bytes) else image)
    x = v2.functional.pad(pixels.permute(2, 0, 1), [PADDING])
    x = v2.functional.crop(x, top, left, SIZE, SIZE)
    return (v2.functional.horizontal_flip(x) if flip else x).permute(1, 2, 0)


LARGE_TRAIN = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor()])
LARGE_TEST = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])


def prepare_large(path: bytes, seed: int | None = None) -> Tensor:
    """An image file -> uint8 [224, 224, 3]: a random part of it, mirrored or not; without a seed, its middle."""
    image = read(path)
    if seed is None:
        return LARGE_TEST(image).permute(1, 2, 0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs, too
        return LARGE_TRAIN(image).permute(1, 2, 0)


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


# --- the way in -------------------------------------------------------------------------------------------------------


def dataloader(data_name: str, batch_size: int = 128, num_workers: int = 8, root: str = "./Data", *, seed: int = 0,
               device: str | torch.device = "cpu", cache: bool = True, val_size: int = 0,
               train_size: int = 0) -> tuple[Loader, Loader]:
    """-> train_loader, test_loader of one of DATASETS.

    num_workers: threads that decode image files or, where images are streamed, processes.
    cache: keep all images on the device; without, and for imagenet always, they are streamed.
    val_size: training images to hold out, stratified; train_loader.held_out passes them as they are (0: it is None).
    train_size: training images to train on, stratified, the same for every seed (0: all that are not held out).
    UserError, in one sentence, where the data cannot be had or a number does not fit it.
    """
    if data_name not in DATASETS:
        raise UserError(f"unknown dataset {data_name!r}; known are {', '.join(DATASETS)}")
    data, device = DATASETS[data_name](root), torch.device(device)
    cache = cache and not data.large
    if cache:
        data = data._replace(train=in_memory(data.train, num_workers), test=in_memory(data.test, num_workers))
    if not data.mean:  # on all training images, so that a network's constants depend on neither size
        mean, std = channel_statistics(data.train, num_workers)
        data = data._replace(mean=mean, std=std)
    train, held_out = divide(data.train, train_size, val_size, seed)
    if not 1 <= batch_size <= len(train.labels):
        raise UserError(f"--batch_size must lie between 1 and the {len(train.labels)} training images of "
                        f"{data_name}, not {batch_size}")
    world_size = processes.world_size()
    if batch_size % world_size:
        raise UserError(f"--batch_size {batch_size} cannot be shared out evenly among {world_size} processes")
    if world_size > min(len(data.test.labels), len(held_out.labels) if held_out else math.inf):
        raise UserError(f"there are fewer images to evaluate than the {world_size} processes")
    kind = Cached if cache else partial(Streamed, num_workers=num_workers)
    train_loader = kind(train, data, batch_size, device, seed, augment=True)
    batch_size = evaluation_batch(batch_size, data, device)
    if held_out:
        train_loader.held_out = kind(held_out, data, batch_size, device)
    return train_loader, kind(data.test, data, batch_size, device)


def evaluation_batch(batch_size: int, data: Data, device: torch.device) -> int:
    """The batch of an evaluation: on GPUs there is room for more; on CPUs, larger batches were slower."""
    least = processes.world_size() * (256 if data.large else 1024) if device.type == "cuda" else 1
    return max(batch_size, least)


def test_images(data_name: str, batch_size: int = 128, num_workers: int = 8, root: str = "./Data", *, mean: Sequence,
                std: Sequence, device: str | torch.device = "cpu", cache: bool = True) -> Loader:
    """``dataloader``'s test_loader alone, normalised by a network's own mean and std: no training image is read, and of
    class folders train/ need not be there."""
    data, device = DATASETS[data_name](root, test_only=True), torch.device(device)
    data = data._replace(mean=tuple(mean), std=tuple(std))
    batch_size = evaluation_batch(batch_size, data, device)
    if data.large or not cache:
        return Streamed(data.test, data, batch_size, device, num_workers=num_workers)
    return Cached(in_memory(data.test, num_workers), data, batch_size, device)


def normalisation(data_name: str, num_workers: int = 8, root: str = "./Data") -> tuple[tuple, tuple]:
    """-> mean, std that ``dataloader`` normalises a dataset by: its constants, or measured on its training images."""
    return CONSTANTS.get(data_name) or channel_statistics(DATASETS[data_name](root).train, num_workers)


def glimpse(data_name: str, root: str, count: int) -> Tensor | None:
    """Up to ``count`` of the test images, uint8 [N, H, W, 3], where they are at hand: nothing is downloaded."""
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
    except (UserError, OSError, RuntimeError):  # RuntimeError: torchvision's, where CIFAR is not there
        return None


def load_image(path: str, large: bool) -> Tensor:
    """An image file, prepared as a test image is -> uint8 [32, 32, 3], or [224, 224, 3] of large images."""
    return prepare_large(os.fsencode(path)) if large else torch.from_numpy(decode(os.fsencode(path)))
