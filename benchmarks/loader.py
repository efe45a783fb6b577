"""Images per second of a training epoch: our loaders against torchvision's transforms on PIL images in a DataLoader.

    python benchmarks/loader.py
    python benchmarks/loader.py --views 4          # also our loaders with four views of each image
    python benchmarks/loader.py --large            # JPEG files of 500x375, prepared as ImageNet's

Augmented and normalised images in the shape of CIFAR-10. Cached is the default of the training scripts; streamed is
their --cache off. The workers of plain and streamed have loaded one epoch before the timing begins.

Measured (two CPU cores, torch 2.14.1): plain 10,652 images/s; cached 147,737, 13.6 times as fast; streamed 19,702,
1.86 times. With --large, one worker: plain 267; --decoder pil 320, 1.19 times; --decoder fast 389, 1.45 times.
"""

import statistics
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

import utils
from benchmarks import compare
from data_loader import DATASETS, DECODERS, Cached, Loader, Split, Streamed, dataloader

PLAIN = "plain (PIL)"


class Images(Dataset):
    """Like torchvision's CIFAR10: each image becomes a PIL image and is then transformed."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor]):
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.split.images[i])), int(self.split.labels[i])


def plain(images: Callable[[Callable], Dataset], crop: Callable, mean: Sequence, std: Sequence, args: Namespace,
          device: torch.device) -> DataLoader:
    """torchvision's usual transforms. images: transform -> the data set."""
    transform = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(),
                                    transforms.Normalize(mean, std)])
    return DataLoader(images(transform), args.batch_size, shuffle=True, num_workers=args.workers,
                      persistent_workers=args.workers > 0, pin_memory=device.type == "cuda")


def small(args: Namespace, device: torch.device) -> dict[str, Loader | DataLoader]:
    """Loaders of images as in CIFAR-10."""
    data = compare.random_data(args.images, 0, args.seed)
    part = Split(*(a[: args.plain_images] for a in data.train))
    loaders = {PLAIN: plain(partial(Images, part), transforms.RandomCrop(32, padding=4), data.mean, data.std, args,
                            device)}
    for views in sorted({1, args.views}):
        more, options = f", {views} views" if views > 1 else "", {"augment": True, "views": views}
        loaders[f"cached{more}"] = Cached(data.train, data, args.batch_size, device, args.seed, **options)
        loaders[f"streamed{more}"] = Streamed(part, data, args.batch_size, device, args.seed,
                                              num_workers=args.workers, **options)
    return loaders


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Random colours with the 1/f spectrum of photographs. As JPEG 115 kB at 500x375, about as in ImageNet."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1  # instead of 0: the mean
    fields = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((4, height, width))) / frequency, (height, width))
    brightness, *colours = (fields - fields.mean((1, 2), keepdims=True)) / fields.std((1, 2), keepdims=True)
    pixels = 128 + 55 * brightness[..., None] + 14 * np.stack(colours, -1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_files(root: Path, count: int, seed: int) -> None:
    """Two classes with ``count`` training images together, and two test images. 32 photographs are repeated."""
    rng = np.random.default_rng(seed)
    sizes = [(500, 375)] * 5 + [(375, 500)] * 2 + [(500, 333)]
    photographs = [photograph(rng, *sizes[i % len(sizes)]) for i in range(min(count, 32))]
    for part, i in [("train", i) for i in range(count)] + [("val", 0), ("val", 1)]:
        place = root / part / f"class {i % 2}" / f"{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        photographs[i % len(photographs)].save(place, quality=90)


def large(args: Namespace, root: Path, device: torch.device) -> dict[str, Loader | DataLoader]:
    """Loaders of JPEG files as in ImageNet: plain, with each decoder, and without normalising."""
    make_files(root, args.large, args.seed)
    imagenet = DATASETS["imagenet"]
    loaders = {PLAIN: plain(partial(datasets.ImageFolder, root / "train"), transforms.RandomResizedCrop(224),
                            imagenet.mean, imagenet.std, args, device)}
    for name in (*DECODERS, "fast, uint8"):
        loaders[name], _ = dataloader("imagenet", args.batch_size, args.workers, str(root), seed=args.seed,
                                      device=device, decoder=name.partition(",")[0])
    loaders["fast, uint8"].normalise = lambda images: images  # as on a machine whose GPU normalises
    return loaders


def load(loader: Loader | DataLoader, epochs: Iterator[int], device: torch.device) -> None:
    """Load the next epoch, and move every batch to the device."""
    if isinstance(loader, Loader):
        loader.set_epoch(next(epochs))
    for batch in loader:
        for tensor in batch:
            tensor.to(device, non_blocking=True)


def parse_args(argv: list[str] | None) -> Namespace:
    p = compare.parser(__doc__)
    p.add_argument("--images", default=50000, type=utils.number(int, 2), help="images in an epoch of cached")
    p.add_argument("--plain_images", default=10000, type=utils.number(int, 2),
                   help="images in an epoch of plain and streamed")
    p.add_argument("--workers", default=2, type=utils.number(int, 0), help="processes of plain and streamed")
    p.add_argument("--views", default=1, type=utils.number(int, 1), help="also our loaders with N views of each image")
    p.add_argument("--large", nargs="?", default=0, const=1024, type=utils.number(int, 2), metavar="N",
                   help="instead: N JPEG files of 500x375 in an epoch, by default 1024, cropped to 224x224")
    p.add_argument("--repeats", default=5, type=utils.number(int, 1), help="timed epochs of each loader")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device = compare.start(args)
    with TemporaryDirectory() as root:
        loaders = large(args, Path(root), device) if args.large else small(args, device)
        epochs = {name: partial(load, loader, count(), device) for name, loader in loaders.items()}
        compare.in_turns(epochs, 1, device)  # starts the workers
        seconds = compare.in_turns(epochs, args.repeats, device)
    images = {name: loader.num_images if isinstance(loader, Loader) else len(loader.dataset)
              for name, loader in loaders.items()}
    per_image = {name: [s / images[name] for s in seconds[name]] for name in loaders}
    print(f"medians of {args.repeats} epochs, {args.workers} workers")
    print(compare.table(("", "images/s", "times as fast as plain", "images in an epoch"), *(
        (name, f"{1 / statistics.median(per_image[name]):,.0f}", compare.ratio(per_image[PLAIN], per_image[name]),
         f"{images[name]:,}") for name in loaders)))


if __name__ == "__main__":
    utils.command(main)
