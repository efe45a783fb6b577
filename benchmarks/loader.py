"""Images per second of a training epoch: our loaders against torchvision's transforms on PIL images in a DataLoader.

    python benchmarks/loader.py
    python benchmarks/loader.py --views 4          # also our loaders with four views of each image
    python benchmarks/loader.py --large            # JPEG files of 500x375, prepared as ImageNet's

Augmented and normalised images in the shape of CIFAR-10. Cached is the default of the training scripts; streamed is
their --cache off. The workers of plain and streamed have loaded one epoch before the timing begins.

Measured (two CPU cores, torch 2.14.1): plain 10,652 images/s; cached 147,737, 13.6 times as fast; streamed 19,702,
1.86 times. With --large, one worker: plain 267; --decoder pil 320, 1.19 times; --decoder fast 389, 1.45 times.
"""

import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # silences the profiler; read when torch is imported

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

import utils
from benchmarks import compare
from data_loader import CONSTANTS, DECODERS, Cached, Data, Loader, Split, Streamed, dataloader


class Images(Dataset):
    """Like torchvision's CIFAR10: each image becomes a PIL image and is then transformed."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor]):
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.split.images[i])), int(self.split.labels[i])


def pil_pipeline(data: Data, batch_size: int, workers: int, device: torch.device) -> DataLoader:
    transform = transforms.Compose([
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(data.mean, data.std),
    ])
    return DataLoader(Images(data.train, transform), batch_size, shuffle=True, num_workers=workers,
                      persistent_workers=workers > 0, pin_memory=device.type == "cuda")


# --- large images


def photograph(rng: np.random.Generator, width: int, height: int) -> bytes:
    """A JPEG file of random colours with the 1/f spectrum of photographs: 115 kB at 500x375, about as in ImageNet."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1  # instead of 0: the mean

    def field() -> np.ndarray:
        values = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / frequency, (height, width))
        return (values - values.mean()) / values.std()

    brightness, file = 128 + 55 * field(), BytesIO()
    pixels = np.stack([brightness + 14 * field() for _ in range(3)], -1)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def make_files(root: Path, count: int, seed: int) -> None:
    """Two classes with ``count`` training images together, and two test images. 32 photographs, again and again."""
    rng = np.random.default_rng(seed)
    sizes = [(500, 375)] * 5 + [(375, 500)] * 2 + [(500, 333)]
    photographs = [photograph(rng, *sizes[i % len(sizes)]) for i in range(min(count, 32))]
    for part, number in (("train", count), ("val", 2)):
        for i in range(number):
            place = root / part / f"class {i % 2}" / f"{i}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(photographs[i % len(photographs)])


def large_pipeline(root: Path, batch_size: int, workers: int, device: torch.device) -> DataLoader:
    """torchvision's usual transforms for ImageNet."""
    transform = transforms.Compose([
        transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(*CONSTANTS["imagenet"]),
    ])
    return DataLoader(datasets.ImageFolder(root / "train", transform), batch_size, shuffle=True, num_workers=workers,
                      persistent_workers=workers > 0, pin_memory=device.type == "cuda")


def compete_large(args, root: Path, device: torch.device) -> dict[str, list[float]]:
    """-> the seconds that an image takes in each epoch: plain, with each decoder, and without normalising."""
    make_files(root, args.large, args.seed)

    def ours(decoder: str) -> Loader:
        return dataloader("imagenet", args.batch_size, args.workers, str(root), seed=args.seed, device=device,
                          decoder=decoder)[0]

    loaders = {"plain": large_pipeline(root, args.batch_size, args.workers, device)}
    loaders |= {decoder: ours(decoder) for decoder in DECODERS} | {"fast, uint8": ours("fast")}
    loaders["fast, uint8"].normalise = lambda images: images  # as on a machine whose GPU normalises
    epochs = {name: Epochs(loader, device) for name, loader in loaders.items()}
    seconds = compare.in_turns(epochs, args.repeats, device)
    return {name: [s / args.large for s in seconds[name]] for name in epochs}


def main_large(args, device: torch.device) -> None:
    """The table of --large."""
    with TemporaryDirectory() as root:
        per_image = compete_large(args, Path(root), device)
    print(f"medians of {args.repeats} epochs of {args.large:,} JPEG files, {args.workers} workers")
    print(compare.table(("decoder", "images/s", "times as fast as plain", "times as fast as pil"), *(
        (name, f"{1 / statistics.median(per_image[name]):,.0f}", compare.ratio(per_image["plain"], per_image[name]),
         compare.ratio(per_image["pil"], per_image[name])) for name in per_image)))


# --- timing


class Epochs:
    """Each call loads the next epoch, and moves every batch to the device."""

    def __init__(self, loader: Iterable, device: torch.device):
        self.loader, self.device, self.epoch, self.images = loader, device, 0, 0
        others = set(multiprocessing.active_children())
        self()  # starts the workers
        self.workers = [child.pid for child in set(multiprocessing.active_children()) - others]

    def __call__(self) -> None:
        if isinstance(self.loader, Loader):
            self.loader.set_epoch(self.epoch)
        self.epoch, self.images = self.epoch + 1, 0
        for images, labels in self.loader:
            images, labels = (t.to(self.device, non_blocking=True) for t in (images, labels))
            self.images += len(labels)


def private_memory(pid: int) -> int:
    """Bytes of memory that a process does not share (Linux; 0 on other systems)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))


def parse_args(argv: list[str] | None):
    p = compare.parser(__doc__)
    p.add_argument("--images", default=50000, type=utils.number(int, 2), help="images in an epoch of cached")
    p.add_argument("--plain_images", default=10000, type=utils.number(int, 2),
                   help="images in an epoch of plain and streamed")
    p.add_argument("--workers", default=2, type=utils.number(int, 0), help="processes of plain and streamed")
    p.add_argument("--views", default=1, type=utils.number(int, 1), help="also ours with so many views of an image")
    p.add_argument("--large", nargs="?", default=0, const=1024, type=utils.number(int, 2), metavar="N",
                   help="instead: N JPEG files of 500x375 in an epoch, by default 1024, cropped to 224x224")
    p.add_argument("--repeats", default=5, type=utils.number(int, 1), help="timed epochs of each loader")
    return p.parse_args(argv)


def compete(args, device: torch.device) -> tuple[dict[str, Epochs], dict[str, int], dict[str, list[float]]]:
    """-> the loaders, the bytes of the images that each keeps, and the seconds that an image takes in each epoch."""
    data = compare.random_data(args.images, 0, args.seed)
    part = data._replace(train=Split(*(a[: args.plain_images] for a in data.train)))

    loaders, size = {"plain (PIL)": pil_pipeline(part, args.batch_size, args.workers, device)}, part.train.images.nbytes
    kept = {"plain (PIL)": size}
    for views in sorted({1, args.views}):
        more, options = f", {views} views" if views > 1 else "", {"augment": True, "views": views}
        cached = Cached(data.train, data, args.batch_size, device, args.seed, **options)
        loaders[f"cached{more}"], kept[f"cached{more}"] = cached, cached.images.nbytes
        loaders[f"streamed{more}"], kept[f"streamed{more}"] = Streamed(
            part.train, data, args.batch_size, device, args.seed, num_workers=args.workers, **options), size
    epochs = {name: Epochs(loader, device) for name, loader in loaders.items()}
    seconds = compare.in_turns(epochs, args.repeats, device)
    return epochs, kept, {name: [s / epochs[name].images for s in seconds[name]] for name in epochs}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device = compare.start(args)
    if args.large:
        main_large(args, device)
        return
    epochs, kept, per_image = compete(args, device)
    print(f"medians of {args.repeats} epochs of {args.images:,} images "
          f"(plain and streamed: {min(args.images, args.plain_images):,} images, {args.workers} workers)")
    header = "", "images/s", "times as fast as plain", "data MiB", "peak MiB without data", "workers MiB"
    print(compare.table(header, *(
        (name, f"{1 / statistics.median(per_image[name]):,.0f}",
         compare.ratio(per_image["plain (PIL)"], per_image[name]), compare.mebibytes(kept[name]),
         compare.mebibytes(compare.peak_memory(epoch, device)),
         compare.mebibytes(sum(map(private_memory, epoch.workers))))
        for name, epoch in epochs.items())))


if __name__ == "__main__":
    utils.command(main)
