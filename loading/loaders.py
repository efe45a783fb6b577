"""Loaders: the batches of one split, augmented and normalised on the training device; and their worker processes."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from threading import Thread

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from loading.augmentation import Normalise, augmentation_parameters, crop_and_flip, pad, preparation
from loading.data import Data, Split, usable_workers
from loading.images import each
from runtime import processes
from runtime.errors import UserError


class Loader:
    """The batches of one split. ``Cached`` and ``Streamed`` give the same ones.

    augment: each epoch has a new order, new crops and new flips. Otherwise the images are in order and unchanged.
    views: how often each image is augmented. With several views, images are [B, V, 3, H, W].
    held_out: the loader of the held-out images (of --val_size, or the data set's own), if there are any.
    """

    def __init__(self, split: Split, data: Data, batch_size: int, device: torch.device, seed: int = 0,
                 augment: bool = False, views: int = 1):
        self.classes, self.num_classes, self.num_images = data.classes, len(data.classes), len(split.labels)
        self.mean, self.std = data.mean, data.std
        self.batch_size, self.device, self.seed, self.epoch = batch_size, device, seed, 0
        self.augment, self.views, self.flip, self.size = augment, views, data.flip, data.size
        self.normalise = Normalise(data.mean, data.std, device)
        self.held_out: Loader | None = None

    def bounds(self) -> list[tuple[int, int]]:
        """(first, end) of each batch, of all processes together.

        A last batch with too few images joins the batch before it. Each process needs two images in training
        (for BatchNorm), and one in evaluation.
        """
        starts = list(range(0, self.num_images, self.batch_size))
        least = processes.world_size() * (2 if self.augment else 1)
        if len(starts) > 1 and self.num_images - starts[-1] < least:
            starts.pop()
        return list(zip(starts, starts[1:] + [self.num_images], strict=True))

    def parts(self, first: int = 0) -> list[tuple[int, int]]:
        """This process's part of each batch, from batch ``first`` on."""
        return [processes.part(a, b) for a, b in self.bounds()[first:]]

    def shares(self, first: int = 0) -> list[float]:
        """This process's number of images in each batch, divided by an equal share: 1 if all have the same number.

        With these weights, the mean of the processes' losses is the mean over the images of the batch.
        """
        parts = zip(self.bounds()[first:], self.parts(first), strict=True)
        return [(end - begin) * processes.world_size() / (b - a) for (a, b), (begin, end) in parts]

    def __len__(self) -> int:
        return len(self.bounds())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next batches, from 0. Their order and augmentation follow from it."""
        self.epoch = epoch

    def augmentation_parameters(self) -> tuple[Tensor, ...]:
        """The order of the images in this epoch [N] and the augmentation parameters of their views, each [N, V]."""
        return augmentation_parameters(self.num_images, self.seed, self.epoch, self.flip, self.size, self.views)

    def finish(self, pixels: Tensor) -> Tensor:
        """uint8 [V B, H, W, 3], view by view -> normalised images [B, 3, H, W], or with several views [B, V, 3, H, W].

        Each view is contiguous, so a network that takes one view copies nothing.
        """
        images = self.normalise(pixels)
        return images if self.views == 1 else images.unflatten(0, (self.views, -1)).transpose(0, 1)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches()

    def batches(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of each batch of the epoch, from batch ``first`` on.

        images: float32 [B, 3, H, W], or with several views [B, V, 3, H, W], in channels_last; labels: int64 [B].
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the worker processes, if there are any."""


class Cached(Loader):
    """All images of the split are on the device, as one uint8 tensor. A batch is augmented at once."""

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
        order, top, left, flips = (t.to(self.device) for t in self.augmentation_parameters())
        for a, b in parts:
            index = order[a:b]
            by_view = (t[a:b].mT.flatten() for t in (top, left, flips))  # [B, V] -> [V B]
            repeated = index.expand(self.views, -1).flatten()
            yield self.finish(crop_and_flip(self.images, self.size, repeated, *by_view)), self.labels[index]


class Streamed(Loader):
    """Each image is read and augmented when its batch needs it, in ``num_workers`` processes (0: in this one).

    A batch travels to the device as uint8, a quarter of the bytes, and is normalised there. UserError if a file does
    not decode. Only one pass at a time: a new pass ends the previous one. decoder: of large images.
    """

    def __init__(self, split: Split, *args, num_workers: int = 0, decoder: str = "pil", **kwargs):
        super().__init__(split, *args, **kwargs)
        self.keys, workers = BatchKeys(), usable_workers(num_workers)
        # batch_size=None: each item is a whole batch already. generator: DataLoader draws one number for its workers,
        # which is not used here. With its own generator it does not change the random numbers of the training.
        prepare = preparation(self.size, decoder, self.flip)
        self.loader = DataLoader(
            Batches(split, prepare), batch_size=None, sampler=self.keys, num_workers=workers,
            persistent_workers=workers > 0, pin_memory=self.device.type == "cuda", generator=torch.Generator(),
            worker_init_fn=leave_signals_to_the_parent)

    def batches(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        self.keys.parameters = self.augmentation_parameters() if self.augment else (torch.arange(self.num_images),)
        self.keys.parts = self.parts(first)
        for batch in self.loader:
            if isinstance(batch, str):
                raise UserError(batch)
            images, labels = (t.to(self.device, non_blocking=True) for t in batch)
            yield self.finish(images.flatten(0, 1)), labels  # [V, B, H, W, 3] -> [V B, H, W, 3]

    def close(self) -> None:
        # Without this, Python ends the workers by SIGTERM when it exits. A worker can miss that signal: while a SIGTERM
        # to the whole job is still pending in it, a second one is lost. Python would then wait for the worker forever.
        if self.loader._iterator is not None:
            self.loader._iterator._shutdown_workers()  # PyTorch has no public name for it
            self.loader._iterator = None


# --- worker processes: each reads and prepares whole batches


class BatchKeys:
    """The sampler of a DataLoader. It gives each batch as a list with one tuple per image: (index, *parameters).

    The augmentation parameters travel with the index. So a worker knows neither the epoch nor its own number.
    parameters: the order of the images [N], then tensors [N, V]. parts: the first and last place of each batch.
    """

    parameters: tuple[Tensor, ...]
    parts: list[tuple[int, int]]

    def __iter__(self) -> Iterator[list[tuple]]:
        for a, b in self.parts:
            yield list(zip(*(t[a:b].tolist() for t in self.parameters), strict=True))


class Batches(Dataset):
    """The data set of a DataLoader: the keys of a batch -> views uint8 [V, B, H, W, 3], labels int64 [B].

    An error, which names all damaged files of the batch, is returned as its text. If it were raised here, DataLoader
    would add a traceback to it.
    """

    def __init__(self, split: Split, prepare: Callable[..., Tensor]):
        self.split, self.prepare = split, prepare

    def __getitem__(self, keys: list[tuple]) -> tuple[Tensor, Tensor] | str:
        try:
            views, labels = default_collate(each(self.image, keys))
            return views.transpose(0, 1).contiguous(), labels  # [B, V, H, W, 3] -> [V, B, H, W, 3]
        except UserError as error:
            return str(error)

    def image(self, key: tuple) -> tuple[Tensor, np.int64]:
        """The key of an image -> its views uint8 [V, H, W, 3], its label."""
        index, *parameters = key
        return self.prepare(self.split.images[index], *parameters), self.split.labels[index]


def leave_signals_to_the_parent(worker: int) -> None:
    """Let a worker ignore Ctrl-C and a closed terminal, and SIGTERM unless its parent sends it.

    Ctrl-C, a closed terminal's SIGHUP and a batch system's SIGTERM reach every process of a job. The training then
    finishes its step, and may need its workers for it. They end when the training ends or when it terminates them.
    """
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=exit_on_sigterm_of_parent, daemon=True).start()


def exit_on_sigterm_of_parent() -> None:
    """Wait for a SIGTERM from the parent process, then exit."""
    parent = multiprocessing.parent_process()  # getppid may be a server that starts processes
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
