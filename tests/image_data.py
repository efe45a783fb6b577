"""Images for tests: random arrays, and files as in ImageNet."""

import numpy as np
import torch
from PIL import Image

from data_loader import Data, Split

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGENET_CLASSES = ["n01440764", "n01443537"]
MODES_AND_SIZES = [("RGB", (300, 260)), ("L", (190, 400)), ("CMYK", (256, 224)), ("P", (90, 60)), ("RGBA", (640, 33)),
                   ("RGB", (225, 225))]


def random_data(n, flip=True):
    """n random images, each of its own class, for training and testing."""
    images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    split = Split(images, np.arange(n))
    return Data(split, split, [str(i) for i in range(n)], MEAN, STD, flip)


def random_images(batch, size=32, seed=0):
    """-> what a network takes, [B, 3, H, W]."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def all_batches(loader):
    """-> the images and labels of an epoch."""
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def same_batches(a, b):
    return all(x.equal(y) and k.equal(n) for (x, k), (y, n) in zip(a, b, strict=True))


def make_images(root, train=12, test=12, size=(32, 32)):
    """Class folders as users have them: JPEG and PNG files of two classes that differ in colour."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for shift, name in ((0, "blue"), (120, "red")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
                pixels[..., 0] += np.uint8(shift)
                Image.fromarray(pixels).save(root / part / name / f"{i}.{'png' if i % 2 else 'jpg'}")
    return root


def make_imagenet(root, train=6, val=3):
    """Photograph-like files of several sizes and modes. Some are PNG files named .JPEG, as in ImageNet."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for name in IMAGENET_CLASSES:
            directory = root / part / name
            directory.mkdir(parents=True)
            for i in range(count):
                mode, size = MODES_AND_SIZES[i % len(MODES_AND_SIZES)]
                image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(size).convert(mode)
                image.save(directory / f"{i}.JPEG", "PNG" if mode in ("P", "RGBA") else "JPEG")
    return root


def imagenet_files(root, part):
    return [file for name in IMAGENET_CLASSES for file in sorted((root / part / name).iterdir())]
