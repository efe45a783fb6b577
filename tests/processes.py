"""Trainings in processes of their own, to be killed, and run folders, to be compared."""

import importlib
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch

from training.run import Interrupted, Signals

# Flags of short trainings, which tests stop, kill and continue.
FLAGS = ["--model", "resnet8", "--dataset", "folder", "--batch_size", "8", "--lr", "0.02", "--schedule", "2",
         "--device", "cpu"]
WORKERS = {0: ["--num_workers", "0"], 2: ["--num_workers", "2", "--cache", "off"]}

# A server imports PyTorch once and forks each process. They are real processes, without seconds of importing.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train_GL", "train_one", "train_kd", "train_FFL", "train_PCL", "train_KDCL",
                                "train_OKDPH", "torch.utils.tensorboard"])


def child(script, argv, output, slow_disk, file_size, die_at, environment):
    """What the process does: run the script's main, with its output in a file."""
    os.environ.update(environment)

    import utils

    multiprocessing.set_start_method(None, force=True)  # the loader's workers start as they do elsewhere
    os.setsid()  # a process group of its own, which a signal may be sent to as a terminal does
    with open(output, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [script, *argv]
    if slow_disk:
        os.fsync = lambda _: time.sleep(0.3)
    if die_at is not None:
        replace, places = os.replace, []

        def die(*names):
            places.append(names)
            if len(places) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*names)

        os.replace = die
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    utils.command(importlib.import_module(script).main)


class Training:
    """A script that runs in a process of its own. Its output: ``output.txt`` in the folder ``where``."""

    def __init__(self, script, argv, where, slow_disk=False, file_size=None, die_at=None, **environment):
        Path(where).mkdir(parents=True, exist_ok=True)
        self.output = Path(where, "output.txt")
        self.started = time.time()
        argv = [str(word) for word in argv]
        self.process = CONTEXT.Process(target=child, args=(script, argv, self.output, slow_disk, file_size,
                                                            die_at, environment))
        self.process.start()

    def wait(self, limit=120):
        """-> its exit code. A negative one is the signal that ended it."""
        self.process.join(limit)
        assert self.process.exitcode is not None, f"still running after {limit} s"
        return self.process.exitcode

    def signal(self, number, group=False):
        (os.killpg if group else os.kill)(self.process.pid, number)

    def said(self):
        return self.output.read_text() if self.output.exists() else ""

    def until(self, condition, limit=120):
        """Wait for a condition while the process runs."""
        end = time.monotonic() + limit
        while not condition():
            assert self.process.is_alive(), f"ended with {self.process.exitcode}: {self.said()}"
            assert time.monotonic() < end, f"not within {limit} s: {self.said()}"
            time.sleep(0.002)


def group(size):
    """The environment that torchrun gives to each of ``size`` processes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return [{"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(port)} for r in range(size)]


def in_processes(target, arguments, limit=120):
    """Run ``target`` with each of these arguments, in processes of their own at the same time, until all have ended."""
    started = [CONTEXT.Process(target=target, args=one) for one in arguments]
    for process in started:
        process.start()
    for process in started:
        process.join(limit)
        assert process.exitcode == 0


def be_one_of(patch, environment):
    """Let this process be one of several. patch: pytest's monkeypatch; environment: one of ``group``."""
    for name, value in environment.items():
        patch.setenv(name, value)


def load(folder, name="last.pth"):
    return torch.load(folder / name, weights_only=True)


def saved_weights(folder, name="last.pth"):
    return load(folder, name)["state_dict"]


def without_times(record):
    return {name: value for name, value in record.items() if name not in ("seconds", "images_per_second")}


def lines(folder):
    return [without_times(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curve(folder, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(event.step, event.value) for event in EventAccumulator(str(folder)).Reload().Scalars(tag)]


def assert_same_run(folder, reference):
    """Weights, metrics, curves and best epoch of two runs are equal, bit for bit."""
    for name in ("last.pth", "best.pth"):
        ours, theirs = (saved_weights(f, name) for f in (folder, reference))
        assert ours.keys() == theirs.keys()
        different = [key for key in theirs if not ours[key].equal(theirs[key])]
        assert not different, f"{name}: {different[:3]}"
    assert lines(folder) == lines(reference)
    assert curve(folder, "Test/AccTop1") == curve(reference, "Test/AccTop1")
    assert_best_agrees(folder)
    assert {f.name for f in folder.iterdir() if "tfevents" not in f.name} == {
        f.name for f in reference.iterdir() if "tfevents" not in f.name}


def assert_best_agrees(folder):
    """best.pth and test_best_metrics.json are of the same epoch, and no recorded epoch is better."""
    best = json.loads((folder / "test_best_metrics.json").read_text())
    assert load(folder, "best.pth")["history"][-1] == best
    phase = "val" if "val_accTop1" in best else "test"
    name = next(f"{output}{phase}_accTop1" for output in ("stu_", "mean_", "") if f"{output}{phase}_accTop1" in best)
    assert best[name] == max(record[name] for record in lines(folder))


class Killed(BaseException):
    """Nothing is saved after it."""


def run_until_the_end(script, argv, monkeypatch, stops=()):
    """Train; each number in ``stops`` is that of a check for signals, in one start, at which the run is stopped.

    A negative one: at which it is killed.
    """
    for stop in (*stops, None):
        checks = []

        def check(self, checks=checks, stop=stop):
            checks.append(1)
            if stop and len(checks) == abs(stop):
                raise Interrupted(signal.SIGTERM) if stop > 0 else Killed

        monkeypatch.setattr(Signals, "check", check)
        if stop is None:
            __import__(script).main(argv)
        else:
            with pytest.raises((SystemExit, Killed)) as end:
                __import__(script).main(argv)
            assert end.type is Killed or end.value.code == 128 + signal.SIGTERM
