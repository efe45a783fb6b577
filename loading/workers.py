"""Worker processes: each reads and prepares whole batches."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from threading import Thread

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from loading.damaged import each
from loading.data import Split
from runtime.errors import UserError


def usable_workers(num_workers: int) -> int:
    """``num_workers``, but not more than the cores that this process may use."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(num_workers, len(cores))


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
        Thread(target=exit_when_the_parent_says, daemon=True).start()


def exit_when_the_parent_says() -> None:
    """Wait for a SIGTERM from the parent process, then exit."""
    parent = multiprocessing.parent_process()  # getppid may be a server that starts processes
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
