"""The batches of a loader, cached and streamed; its worker processes, which end when they should."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from conftest import few_digits
from hypothesis import given, settings
from hypothesis import strategies as st
from image_data import IMAGENET_CLASSES, all_batches, make_imagenet, random_data, same_batches
from processes import be_one_of, group

from data_loader import Cached, Data, Split, Streamed, dataloader
from loading.data import usable_workers
from loading.loaders import Loader
from runtime.errors import UserError


def of_one_process(environment, n, batch_size, augment):
    """The bounds of all batches, and the parts and shares of one of several processes."""
    data = Data(Split(np.zeros(n, np.uint8), np.zeros(n, np.int64)), mean=(0.5,) * 3, std=(0.25,) * 3)
    with pytest.MonkeyPatch.context() as patch:
        be_one_of(patch, environment)
        loader = Loader(data.train, data, batch_size, torch.device("cpu"), augment=augment)
        return loader.bounds(), loader.parts(), loader.shares()


# The same examples in every run, and no folder with examples left behind.
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(world_size=st.integers(1, 9), per_process=st.integers(2, 20), more=st.integers(0, 300), augment=st.booleans())
def test_every_image_is_in_one_part_of_one_batch(world_size, per_process, more, augment):
    """In training each process has two images or more, in evaluation one or more; shares weigh by images."""
    batch_size = world_size * per_process
    n = batch_size + more
    bounds, parts, shares = zip(*(of_one_process(one, n, batch_size, augment) for one in group(world_size)),
                                strict=True)
    assert all(b == bounds[0] for b in bounds)
    assert [i for a, b in bounds[0] for i in range(a, b)] == list(range(n))
    least = 2 if augment else 1
    for step, (first, end) in enumerate(bounds[0]):
        assert end - first < batch_size + least * world_size
        assert batch_size <= end - first or step == len(bounds[0]) - 1
        images = [i for part in parts for i in range(*part[step])]
        assert images == list(range(first, end))
        sizes = [b - a for a, b in (part[step] for part in parts)]
        assert min(sizes) >= least and max(sizes) - min(sizes) <= 1
        assert [share[step] for share in shares] == [size * world_size / (end - first) for size in sizes]


# --- streamed


@pytest.mark.parametrize(("name", "workers", "views"), [
    ("DIGITS", 1, 1), ("folder", 0, 1), ("DIGITS", 0, 3), ("folder", 2, 4)])
@pytest.mark.parametrize("train_size", [0, 31])
def test_without_cache_the_batches_are_the_same(image_folder, name, workers, views, train_size):
    """Bit for bit: two epochs, one of them from a later step on, the held-out images, the test images.

    The epochs begin after one that was left early, in the same worker processes.
    """
    root = image_folder(train=30)
    options = {"seed": 1, "views": views, "train_size": train_size, "val_size": 12}
    with few_digits():
        cached = dataloader(name, 17, 2, root, **options)
        streamed = dataloader(name, 17, workers, root, cache=False, **options)
    assert isinstance(cached[0], Cached) and isinstance(streamed[0], Streamed)
    assert (cached[0].mean, cached[0].std) == (streamed[0].mean, streamed[0].std)
    for number, first in ((0, 0), (5, 1)):
        for loader in (cached[0], streamed[0]):
            loader.set_epoch(number)
            images, _ = next(iter(loader))
            for view in images.unbind(1) if views > 1 else [images]:
                assert view.shape == (17, 3, 32, 32) and view.is_contiguous(memory_format=torch.channels_last)
        assert same_batches(cached[0].batches(first), streamed[0].batches(first))
    assert same_batches(cached[0].held_out, streamed[0].held_out) and same_batches(cached[1], streamed[1])
    assert next(iter(cached[1]))[0].shape[1:] == (3, 32, 32)  # evaluation has one view


@pytest.mark.parametrize("kind", [Cached, Streamed])
def test_processes_share_each_batch(kind, monkeypatch):
    data, parts = random_data(22), []
    for environment in group(2):
        with monkeypatch.context() as patch:
            be_one_of(patch, environment)
            parts.append(list(kind(data.train, data, 8, torch.device("cpu"), augment=True)))
    shared = [[torch.cat(halves) for halves in zip(*both, strict=True)] for both in zip(*parts, strict=True)]
    assert [len(labels) for _, labels in parts[0]] == [4, 4, 3]
    assert same_batches(shared, Cached(data.train, data, 8, torch.device("cpu"), augment=True))


@pytest.fixture
def root(tmp_path):
    return make_imagenet(tmp_path / "images")


def imagenet(root, workers=0, **options):
    return dataloader("imagenet", 4, workers, root, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_torchs_own_random_numbers_are_not_changed(root, workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    train, test = imagenet(root, workers)
    list(train), list(test)
    assert torch.get_rng_state().equal(before)


def error_of(loader):
    """Not pytest.raises: it keeps the traceback, and with it the worker processes, which then end late."""
    try:
        list(loader)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("workers", [0, 2])
def test_all_corrupt_files_of_a_batch_are_named(root, workers):
    # Two are in one batch, and one in the next.
    first, second, alone = (root / "val" / IMAGENET_CLASSES[c] / f"{i}.JPEG" for c, i in ((0, 0), (0, 2), (1, 2)))
    for file in (first, second, alone):
        file.write_bytes(file.read_bytes()[:300])
    test = imagenet(root, workers)[1]
    message = error_of(test)
    assert message.startswith(f"2 image files or folders cannot be used: {first} does not decode as an image: ")
    assert f"; {second} does not decode" in message and message.count("JPEG does not") == 2 and "\n" not in message
    first.unlink(), second.unlink()
    message = error_of(imagenet(root, workers)[1])
    assert message.startswith(f"{alone} does not decode as an image: ") and "\n" not in message


def test_a_decoder_that_is_not_installed(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(UserError, match="^--decoder fast needs a package .*: pip install simplejpeg$"):
        imagenet(root, decoder="fast")
    assert imagenet(root)[0].num_images == 12


# --- worker processes


@pytest.fixture
def streamed():
    """A loader of 8 batches, with one worker process."""
    with few_digits():
        loader, _ = dataloader("DIGITS", 16, 1, cache=False)
    yield loader
    loader.close()


def send_from_another_process(number, pid):
    subprocess.run(["sh", "-c", f"kill -{number} {pid}"], check=True)


def test_there_are_not_more_workers_than_cores(monkeypatch):
    """Those that the process may use; of the machine, where the system does not tell."""
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0: {1, 4}, 1: set(range(64))}[pid], raising=False)
    assert [usable_workers(n) for n in (0, 1, 8)] == [0, 1, 2]
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_workers(8) == 5


def test_a_signal_to_the_job_does_not_end_a_worker(streamed):
    batches = iter(streamed)
    next(batches)
    (worker,) = multiprocessing.active_children()
    send_from_another_process(signal.SIGTERM, worker.pid)
    send_from_another_process(signal.SIGINT, worker.pid)
    send_from_another_process(signal.SIGHUP, worker.pid)
    assert len(list(batches)) == 7 and worker.is_alive()


def test_a_worker_ends_even_if_it_has_not_yet_seen_a_signal_to_the_job(streamed):
    """The worker stands still while the signal comes, as on a busy machine. Then the loader is closed."""
    next(iter(streamed))
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGSTOP)
    send_from_another_process(signal.SIGTERM, worker.pid)
    threading.Timer(0.5, os.kill, (worker.pid, signal.SIGCONT)).start()
    start = time.monotonic()
    streamed.close()
    worker.join(10)
    assert not worker.is_alive() and time.monotonic() - start < 10


def test_a_worker_ends_when_its_parent_says_so(streamed):
    """PyTorch does if a worker does not come to an end by itself. It takes another exit code for a failure."""
    next(iter(streamed))
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_a_closed_loader_can_be_used_again(streamed):
    """Its workers end although something still refers to an epoch that was interrupted, as a traceback does."""
    first = [labels.tolist() for _, labels in streamed]
    interrupted = iter(streamed)
    next(interrupted)
    start = time.monotonic()
    streamed.close()
    assert multiprocessing.active_children() == [] and time.monotonic() - start < 4  # PyTorch ends a worker after 5
    assert [labels.tolist() for _, labels in streamed] == first


def test_large_images_that_must_not_be_mirrored_are_not():
    data = random_data(20, flip=False)._replace(size=96)
    data.train.images[:] = np.arange(0, 256, 8, dtype=np.uint8)[:, None]  # brighter from left to right
    images, _ = all_batches(Streamed(data.train, data, 8, torch.device("cpu"), augment=True))
    assert (images[..., 0] < images[..., -1]).all()
