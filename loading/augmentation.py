"""Augmentation: its parameters for an epoch, the crops and flips, and normalising."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms
from torchvision.transforms import v2

from loading.data import is_large
from loading.images import decode, read, read_fast

DECODERS = {"pil": read, "fast": read_fast}  # --decoder
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random crop of a large image: its part of the area, width / height


def augmentation_parameters(num_images: int, seed: int, epoch: int, flip: bool, size: int = 32,
                            views: int = 1) -> tuple[Tensor, ...]:
    """-> the order of the images in an epoch [N], then each augmentation parameter [N, V]: row n is for the n-th image
    of the epoch, column v for its view v.

    Small images: first row and first column of the crop, and whether to flip. Large images: the seed of torchvision's
    transforms. All depend on (seed, epoch) alone and are drawn on the CPU, so every device sees the same images. The
    first view does not depend on the number of views.
    """
    state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0]))
    order = torch.randperm(num_images, generator=generator)

    def view() -> tuple[Tensor, ...]:
        if is_large(size):
            return (torch.randint(2**63 - 1, (num_images,), generator=generator),)
        top, left = torch.randint(2 * padding(size) + 1, (2, num_images), generator=generator)
        flips = torch.rand(num_images, generator=generator) < 0.5 if flip else torch.zeros(num_images, dtype=torch.bool)
        return top, left, flips

    drawn = zip(*(view() for _ in range(views)), strict=True)
    return order, *(torch.stack(parameter, 1) for parameter in drawn)  # V times [N] -> [N, V]


def padding(size: int) -> int:
    """The border of small images: 4 for 32x32. A crop of the padded image starts at one of 9 rows and 9 columns."""
    return size // 8


# --- one image at a time, in worker processes. The image is read once, whatever the number of views.


def preparation(size: int, decoder: str = "pil", flip: bool = True) -> Callable[..., Tensor]:
    """The function that prepares an image of this size: image, parameters of each view -> uint8 [V, size, size, 3].

    image: the path of a file, or uint8 [H, W, 3]. Without parameters it gives one view, which is not augmented.
    decoder, flip: of large images: one of DECODERS; whether they may be mirrored.
    """
    if is_large(size):
        return partial(prepare_large, size=size, decoder=decoder, flip=flip)
    return partial(prepare_small, size=size)


def prepare_small(image: np.ndarray | bytes, top: Sequence[int] = (), left: Sequence[int] = (),
                  flips: Sequence[bool] = (), *, size: int) -> Tensor:
    """An image -> its views, padded, cropped and flipped."""
    pixels = torch.from_numpy(decode(image, size))[None]
    if not len(top):
        return pixels
    index, top, left = (torch.tensor(values) for values in ([0] * len(top), top, left))
    return crop_and_flip(pad(pixels), size, index, top, left, torch.tensor(flips, dtype=torch.bool))


def prepare_large(image: np.ndarray | bytes, seeds: Sequence[int] = (), *, size: int, decoder: str,
                  flip: bool) -> Tensor:
    """An image -> a random crop and flip for each seed; without seeds the centre crop.

    All decoders give the same crops and flips. PyTorch resizes what "fast" decodes, Pillow the rest: rounding differs.
    """
    image = DECODERS[decoder](image) if isinstance(image, bytes) else Image.fromarray(image)
    if not isinstance(image, Image.Image):
        image = torch.from_numpy(image).permute(2, 0, 1)  # [3, H, W]
    if not seeds:
        resized = v2.functional.resize(image, [size * 8 // 7])  # 224 -> 256
        return pixels(v2.functional.center_crop(resized, [size, size]))[None]
    with torch.random.fork_rng(devices=[]):
        return torch.stack([random_view(image, seed, size, flip) for seed in seeds])


def random_view(image: Image.Image | Tensor, seed: int, size: int, flip: bool) -> Tensor:
    """torchvision's RandomResizedCrop(size) and (flip) RandomHorizontalFlip() after torch.manual_seed(seed).

    An image, or uint8 [3, H, W] -> uint8 [size, size, 3].
    """
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
    box = transforms.RandomResizedCrop.get_params(image, SCALE, RATIO)
    mirrored = flip and torch.rand(1) < 0.5
    crop = v2.functional.crop(image, *box)
    if isinstance(crop, Tensor):  # contiguous memory is resized faster
        crop = crop.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    view = pixels(v2.functional.resize(crop, [size, size]))
    return view.flip(1) if mirrored else view


def pixels(image: Image.Image | Tensor) -> Tensor:
    """An image, or uint8 [3, H, W] -> uint8 [H, W, 3]."""
    return image.permute(1, 2, 0) if isinstance(image, Tensor) else torch.from_numpy(np.array(image))


# --- a batch at once, on the training device


def pad(images: Tensor) -> Tensor:
    """uint8 [N, S, S, 3] -> [N, S + 2 p, S + 2 p, 3], p the ``padding``: a black border, zeros before normalising."""
    border = padding(images.shape[1])
    return F.pad(images, (0, 0, border, border, border, border))


def crop_and_flip(padded: Tensor, size: int, index: Tensor, top: Tensor, left: Tensor, flips: Tensor) -> Tensor:
    """Images ``index`` of what ``pad`` returns, each with its own crop and flip -> [B, size, size, 3].

    All S x S windows of all images are a view of overlapping memory: for S = 32 [N, 9, 9, S, 3 S]. So one gather crops
    a batch.
    """
    shifts = padded.shape[1] - size + 1
    image, row, column = padded.stride()[:3]
    windows = padded.as_strided((len(padded), shifts, shifts, size, size * 3), (image, row, column, row, 1))
    crops = windows[index, top, left].view(-1, size, size, 3)  # [B, S, 3 S] -> [B, S, S, 3]
    return torch.where(flips[:, None, None, None], crops.flip(2), crops)


class Normalise:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in channels_last: (x / 255 - mean) / std, torchvision's to the bit."""

    def __init__(self, mean: tuple, std: tuple, device: torch.device):
        # On a GPU, PyTorch replaces x / 255 by x * (1 / 255), which rounds differently. With a tensor it divides.
        self.white = torch.tensor(255.0, device=device)
        self.mean, self.std = (torch.tensor(channels, device=device) for channels in (mean, std))  # [3]

    def __call__(self, images: Tensor) -> Tensor:
        x, mean, std = images.to(torch.float32), self.mean, self.std
        if x.device.type == "cpu":  # loops over 3 numbers are slow there: rows of 3 W numbers, [B, H, 3 W]
            x, mean, std = x.flatten(2), mean.repeat(x.shape[2]), std.repeat(x.shape[2])
        return x.div_(self.white).sub_(mean).div_(std).view(images.shape).permute(0, 3, 1, 2)
