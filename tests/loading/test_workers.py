"""Worker processes of a streamed loader end when they should, and only then."""

import multiprocessing
import os
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
import torch

from loading.data import Data, Split
from loading.loaders import Streamed
from loading.workers import usable_workers


@pytest.fixture
def loader():
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8), rng.integers(0, 2, 40))
    data = Data(split, split, ["a", "b"], (0.5,) * 3, (0.25,) * 3)
    loader = Streamed(split, data, 4, torch.device("cpu"), augment=True, num_workers=1)
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
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_workers(8) == 1


def test_a_signal_to_the_job_does_not_end_a_worker(loader):
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    send_from_another_process(signal.SIGTERM, worker.pid)
    send_from_another_process(signal.SIGINT, worker.pid)
    send_from_another_process(signal.SIGHUP, worker.pid)
    assert len(list(batches)) == 9 and worker.is_alive()


def test_a_worker_ends_even_if_it_has_not_yet_seen_a_signal_to_the_job(loader):
    """The worker stands still while the signal comes, as on a busy machine. Then the loader is closed."""
    next(iter(loader))
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGSTOP)
    send_from_another_process(signal.SIGTERM, worker.pid)
    threading.Timer(0.5, os.kill, (worker.pid, signal.SIGCONT)).start()
    start = time.monotonic()
    loader.close()
    worker.join(10)
    assert not worker.is_alive() and time.monotonic() - start < 10


def test_a_worker_ends_when_its_parent_says_so(loader):
    """PyTorch does if a worker does not come to an end by itself. It takes another exit code for a failure."""
    next(iter(loader))
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_a_closed_loader_can_be_used_again(loader):
    first = [labels.tolist() for _, labels in loader]
    start = time.monotonic()
    loader.close()
    assert multiprocessing.active_children() == [] and time.monotonic() - start < 4  # PyTorch ends a worker after 5
    assert [labels.tolist() for _, labels in loader] == first
