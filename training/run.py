"""A run: its device, its folder, the checkpoint that it resumes, its seed; and the signals that stop it."""

import argparse
import logging
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

import models
from methods import revision
from models.imagenet import NETWORKS as LARGE
from runtime import processes
from runtime.device import pick_device, seed_everything, set_precision
from runtime.errors import UserError, warn
from training.checkpoint import load_to_resume
from training.folder import Lock, remove_run, run_folder
from training.records import close_log, log, open_log
from utils import network_options


class Run:
    """A run of ``method`` (a name) with the flags ``args``. ``with run:`` opens its folder.

    Create it before the data and the model. Creating it writes no file. UserError if a network, the device, the folder
    or the checkpoint to resume is wrong.

    files: the networks that a Python file makes -> the file, and the SHA-256 of its content.
    unchangeable: values that must be the same whenever the run is resumed; checkpoints contain them. Its num_epochs is
    that of the first start. It determines the schedule and the ramp-up, even if --num_epochs was raised later.
    """

    def __init__(self, args: argparse.Namespace, method: str):
        self.args, self.method = args, method
        self.check_networks()
        self.device = pick_device(args.device, args.gpu_id, args.sync_bn)
        processes.start(self.device)
        self.folder, resumed = processes.on_main(lambda: run_folder(args, method))
        self.lock: Lock | None = None
        self.checkpoint = processes.on_main(lambda: self.load(resumed)) if resumed else None
        self.history: list[dict] = self.checkpoint["history"] if self.checkpoint else []
        self.unchangeable = self.checkpoint["unchangeable"] if self.checkpoint else {
            "num_epochs": args.num_epochs, "revision": revision(method)}
        set_precision(args.tf32)
        seed_everything(args.seed)

    def check_networks(self) -> None:
        """UserError if a network is unknown, or does not fit its flags or the images. A warning if they are small."""
        args = self.args
        names = getattr(args, "models", None) or [args.model]
        flags = dict.fromkeys(names, "--models" if len(names) > 1 else "--model")
        if getattr(args, "T_model", None):
            flags.setdefault(args.T_model, "--T_model")
        try:
            self.choose_size(names)
            models.find_each(flags)
            models.find_each(names, **network_options(args))
        except ValueError as error:
            raise UserError(str(error), found_by_all=True) from error
        self.files = {name: models.file_of(name) for name in names if models.in_file(name)}
        size = args.image_size or (224 if args.dataset == "imagenet" else 32)
        for name, flag in flags.items():
            if size != 32 and name.startswith("vgg") and not models.is_external(name):
                raise UserError(f"argument {flag}: {name} is made for images of 32x32, not {size}x{size} (torchvision "
                                "has vgg networks for large images: torchvision:vgg16_bn)", True)
            if size <= 64 and name in LARGE:
                last = -(-size // 32)  # five layers of stride 2 round up
                warn(f"the images of --dataset {args.dataset} are {size}x{size}, and {flag} {name} is made for 224x224:"
                     f" its last feature map is {last}x{last} here (--image_size 224 makes them larger)")

    def choose_size(self, names: list[str]) -> None:
        """Set --image_size if it is not given and a network is from elsewhere: for a folder, to the network's size."""
        args, elsewhere = self.args, [name for name in names if models.is_external(name)]
        if args.image_size or not elsewhere:
            return
        own = max(map(models.default_size, elsewhere)) if args.dataset == "folder" else 32
        args.image_size = 224 if args.dataset == "imagenet" else own
        if args.image_size != 32 and processes.is_main():
            print(f"--image_size {args.image_size}: what {' and '.join(elsewhere)} is made for")

    def normalisation(self) -> tuple[tuple, tuple] | None:
        """The mean and std that --pretrained weights need; None: those of the data. UserError if they differ."""
        args = self.args
        if not args.pretrained:
            return None
        names = [name for name in getattr(args, "models", None) or [args.model] if models.is_external(name)]
        try:
            needed = {models.normalisation(name) for name in names}
        except ValueError as error:
            raise UserError(str(error), found_by_all=True) from error
        if len(needed) > 1:
            raise UserError(f"--pretrained: the weights of {' and '.join(names)} need images of different mean and "
                            "std: train them without it, or with --init", found_by_all=True)
        return needed.pop()

    def load(self, path: Path) -> dict:
        """The checkpoint that this run continues. The folder is locked first, so that no other process replaces it."""
        if path.exists():
            if not (self.folder / "lock").exists():  # no process trains there: it may be refused without a lock
                load_to_resume(path, self.args, self.method, self.folder)
            self.lock = Lock(self.folder)
        return load_to_resume(path, self.args, self.method, self.folder)

    def check_unchanged(self, **values: object) -> None:
        """Record what must be the same whenever the run is resumed. UserError if a value differs from the record."""
        for name, value in values.items():
            recorded = self.unchangeable.setdefault(name, value)
            if recorded != value:
                raise UserError(f"{self.folder} was started with other {name} ({str(recorded)[:80]} there, "
                                f"{str(value)[:80]} here): resume it with the same {name}", found_by_all=True)

    def check_epoch(self, steps: int) -> None:
        """UserError if an epoch that was begun had another number of steps: it depends on the number of processes."""
        last = self.checkpoint or {"sums": {"steps": 0}}
        if last["sums"]["steps"] and last.get("steps_per_epoch", steps) != steps:
            raise UserError(f"{self.folder} was stopped inside an epoch of {last['steps_per_epoch']} steps, which has "
                            f"{steps} with this number of processes: resume it with as many processes as before",
                            found_by_all=True)

    def __enter__(self) -> "Run":
        """Make the folder, take its lock, open the log."""
        if processes.rank():
            log.handlers = [logging.NullHandler()]
            # All processes have drawn the same weights. From here on each needs random numbers of its own. 32 bits:
            # of a larger seed, NumPy and PyTorch on a CPU use only the last 32.
            seed_everything(int(np.random.SeedSequence((self.args.seed, processes.rank())).generate_state(1)[0]))
        processes.on_main(self.open)
        return self

    def open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.lock is None:
            self.lock = Lock(self.folder)
            _, begun = run_folder(self.args, self.method)  # UserError if another process has made a run meanwhile
            if begun:
                raise UserError(f"another process has trained in {self.folder} meanwhile: start this one again")
            remove_run(self.folder)
        open_log(self.folder)

    def __exit__(self, *_) -> None:
        """Close the log, and let another process train here."""
        if processes.is_main():
            close_log()
            self.lock.release()


# --- signals ----------------------------------------------------------------------------------------------------------

# Seconds in which a second signal counts as the first: torchrun forwards signals, and a shell that ends with its
# terminal sends SIGHUP as the terminal does.
REPEAT = 5
HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has no SIGHUP


class Interrupted(Exception):
    """A signal was received, and the current step is complete."""

    def __init__(self, number: int):
        self.number = number


class Signals:
    """A context in which SIGINT, SIGTERM and SIGHUP are noted; ``watch`` raises Interrupted between two steps.

    SIGHUP, which a closed terminal sends, is left alone if the process ignores it, as under nohup. A second signal ends
    the process at once, as it would without this class.
    """

    number = 0

    def __init__(self):
        self.agreed = processes.greatest(0)

    def __enter__(self) -> "Signals":
        numbers = {signal.SIGINT, signal.SIGTERM} | ({HANGUP} if signal.getsignal(HANGUP) != signal.SIG_IGN else set())
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers in no other thread
            self.old = {number: signal.signal(number, self.note) for number in numbers}
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        for number, handler in getattr(self, "old", {}).items():
            signal.signal(number, handler)
        if kind in (None, SystemExit):  # after another error a process may be gone, and waiting would never end
            self.agreed()

    def note(self, number: int, frame: object) -> None:
        """The signal handler."""
        repeat = REPEAT if processes.world_size() > 1 or number == HANGUP != signal.SIGTERM else 0
        if self.number and time.monotonic() - self.since >= repeat:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not self.number:
            self.number, self.since = number, time.monotonic()

    def watch(self, batches: Iterable) -> Iterator:
        """Yield the batches. After a signal, raise Interrupted before the next batch or after the last one."""
        for batch in batches:
            self.check()
            yield batch
        self.check()

    def check(self) -> None:
        """Raise Interrupted if a signal was received.

        All processes stop at the same step: the one after the step in which the first signal was received.
        """
        if processes.world_size() == 1:
            number = self.number
        else:
            number, self.agreed = self.agreed(), processes.greatest(self.number)
        if number:
            raise Interrupted(number)
