"""A run and its folder: the data and device it works with, its log, its figures, its curves and its checkpoints."""

import argparse
import errno
import json
import logging
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import parallel
from checkpoint import as_json, digest, load_checkpoint, load_weights, random_state, save, serialise, set_random_state
from data_loader import Loader, dataloader
from errors import Complete, UserError
from models import create_model
from utils import FILES, environment, pick_device, run_folder, seed_everything, set_precision, warn

try:
    import fcntl
except ImportError:  # Windows has none: there two processes on one folder are not told apart
    fcntl = None

log = logging.getLogger("okddip")

FORMAT = 2  # of a checkpoint
# Flags that may differ between a run and its continuation: none of them changes what is computed.
FREE_FLAGS = {"resume", "overwrite", "save_dir", "data_dir", "cache", "num_workers", "gpu_id", "device",
              "log_every", "num_epochs", "version", "T_model_path", "save_every", "save_steps"}
# Flags that the first runs did not have, as those would have had them: a checkpoint without them can be resumed, a
# record without them is grouped with those that name them.
LATER_FLAGS = {"train_size": 0, "detach_targets": False}
# What a checkpoint is continued from.
PARTS = {"format": int, "flags": dict, "recipe": dict, "history": list, "random": list, "starts": list,
         "state_dict": dict, "optimizer": dict, "scheduler": dict, "scaler": dict, "tally": dict}


class Run:
    """Everything of a training but the model and the method.

    Made first, before there is a model: it checks the folder, loads the data, picks the device and sets the seed, and
    raises UserError where one of these fails. ``open`` makes the folder, once nothing can fail any more.
    """

    def __init__(self, args: argparse.Namespace, method: str = ""):
        self.args, self.method = args, method
        self.device = pick_device(args)
        parallel.start(self.device)
        self.folder = parallel.on_main(lambda: run_folder(args, method))
        self.lock: Lock | None = None
        self.checkpoint = parallel.on_main(self.load_last)
        self.history: list[dict] = self.checkpoint["history"] if self.checkpoint else []
        # the schedule and the ramp-up are those of the first start, also where --num_epochs was raised later
        self.recipe = self.checkpoint["recipe"] if self.checkpoint else {"num_epochs": args.num_epochs}
        self.train_loader, self.test_loader = parallel.main_first(lambda: dataloader(
            args.dataset, args.batch_size, args.num_workers, args.data_dir, seed=args.seed, device=self.device,
            cache=args.cache == "on", val_size=args.val_size, train_size=args.train_size))
        self.num_classes = self.train_loader.num_classes
        self.pin("classes", self.train_loader.classes)
        self.pin("images", [self.train_loader.num_images, self.test_loader.num_images])
        self.pin("normalisation", [list(self.train_loader.mean), list(self.train_loader.std)])
        set_precision(args.tf32)
        seed_everything(args.seed)

    @property
    def num_epochs(self) -> int:
        """--num_epochs of the first start."""
        return self.recipe["num_epochs"]

    def milestones(self) -> list[int]:
        """The zero-based epochs from which the learning rate is a tenth of what it was.

        Half and three quarters of the training unless --schedule says otherwise, rounded up: epoch e is past a half
        of n where e >= n / 2.
        """
        n = self.num_epochs
        return self.args.schedule or [-(-n // 2), -(-3 * n // 4)]

    def evaluated(self) -> list[tuple[str, Loader]]:
        """What is measured after each epoch: the held-out images where there are some, and the test images."""
        held_out = self.train_loader.held_out
        return [("test", self.test_loader)] if held_out is None else [("val", held_out), ("test", self.test_loader)]

    # --- resuming

    def load_last(self) -> dict | None:
        """The checkpoint to continue from, if any; Complete where it is that of a training that reached its end."""
        path = self.folder / "last.pth" if self.args.resume == "auto" else Path(self.args.resume or "")
        if not self.args.resume or self.args.resume == "auto" and not path.exists():
            return None
        path = path / "last.pth" if path.is_dir() else path
        if path.exists():  # before it is read, so that nobody writes another one meanwhile
            self.lock = Lock(self.folder)
        checkpoint = load_checkpoint(path)
        if checkpoint.get("format", FORMAT) != FORMAT:
            raise UserError(f"{path} has checkpoint format {checkpoint['format']}, this code resumes {FORMAT}")
        missing = [name for name, kind in PARTS.items() if not isinstance(checkpoint.get(name), kind)]
        if missing:
            raise UserError(f"{path} cannot be resumed: it has no {', '.join(missing)}")
        flags, there = {"method": self.method, **vars(self.args)}, LATER_FLAGS | checkpoint["flags"]
        changed = [f"--{name} {there.get(name)} there, {value} here" for name, value in flags.items()
                   if name not in FREE_FLAGS and there.get(name) != value]
        if changed:
            raise UserError(f"{path} was started otherwise ({'; '.join(changed)}): resume with the same flags")
        done, planned = len(checkpoint["history"]), checkpoint["flags"]["num_epochs"]
        if self.args.num_epochs < planned:
            raise UserError(f"--num_epochs of {self.folder} was {planned}: it can be raised, not lowered")
        if path.name != "last.pth" and done < len(self.recorded()):
            raise UserError(f"{self.folder} has gone on since {path.name}: --resume {self.folder} continues it; to go "
                            f"back, copy {path.name} into another folder")
        if done >= self.args.num_epochs and self.is_finished(checkpoint["history"]):
            raise Complete(f"{self.folder} is complete: {done} epochs (more with --num_epochs)")
        return checkpoint

    def recorded(self) -> list[dict]:
        """The epochs that last.pth has, none where there is none."""
        last = self.folder / "last.pth"
        return load_checkpoint(last)["history"] if last.exists() else []

    def is_finished(self, history: list[dict]) -> bool:
        """Whether the summary, the last thing that a training writes, is that of its last epoch."""
        try:
            return json.loads((self.folder / "summary.json").read_text())["last"] == history[-1]
        except (OSError, ValueError, LookupError):
            return False

    def pin(self, name: str, value: object) -> None:
        """Note what must be the same whenever the run is continued; UserError where it is not."""
        there = self.recipe.setdefault(name, value)
        if there != value:
            error = UserError(f"{self.folder} was started with other {name} ({str(there)[:80]} there, "
                              f"{str(value)[:80]} here): resume it with the same {name}")
            error.told = not parallel.is_main()
            raise error

    def restore(self) -> None:
        """Model, optimizer, schedule, sums of a begun epoch and random numbers as the checkpoint has them."""
        self.trainer.load_state_dict(self.checkpoint)
        states = self.checkpoint["random"]
        if len(states) == parallel.world_size():
            set_random_state(states[parallel.rank()], self.device)
        if self.history and not parallel.on_main(self.best_is_saved):
            if self.trainer.tally.steps == 0 and self.best() is self.history[-1]:
                self.save(best=True)  # the process ended between the two renames
            else:
                log.warning(f"{self.folder}/best.pth is missing or of another epoch than {self.best()['epoch']}, the "
                            "best one so far: it is written when a better epoch comes")
        self.checkpoint = None

    def best_is_saved(self) -> bool:
        """Whether best.pth is whole, and of the best epoch."""
        try:
            return load_checkpoint(self.folder / "best.pth")["history"][-1] == self.best()
        except (UserError, LookupError):
            return False

    # --- the folder

    def open(self, trainer, best: str, curves: Mapping[str, str]) -> None:
        """Make the folder (or take up the one that is resumed) and write down how the run is made.

        best: the figure that chooses the best epoch; curves: rows whose curves have a sub-folder of their own.
        """
        self.trainer = trainer
        self.best_figure = best if self.train_loader.held_out is None else best.replace("test_", "val_")
        if parallel.rank():
            log.handlers = [logging.NullHandler()]
            # the weights are drawn: from here on, each process draws for its own images
            seed_everything((self.args.seed + 2**32 * parallel.rank()) % 2**63)
        parallel.on_main(self.make_folder)
        self.parameters = self.describe()
        if self.checkpoint:
            self.restore()
        parallel.on_main(lambda: self.open_records(curves))

    def make_folder(self) -> None:
        """An own folder without a run in it, unless it is resumed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.lock is None:
            self.lock = Lock(self.folder)
            run_folder(self.args, self.method)  # raises where another process made a run of it since we looked
            if self.args.resume and (self.folder / "last.pth").exists():
                raise UserError(f"another process has trained in {self.folder} meanwhile: start this one again")
            remove_run(self.folder)
        self.open_log()

    def open_records(self, curves: Mapping[str, str]) -> None:
        """Write what is known before the first epoch, and draw the curves that a resumed run had."""
        from torch.utils.tensorboard import SummaryWriter

        files = {"parameters.json": as_json(self.parameters)}
        if self.history:  # what a process that was killed may not have come to
            files["metrics.jsonl"] = self.json_lines()
            if self.best_is_saved():
                files["test_best_metrics.json"] = as_json(self.best())
        save({self.folder / name: content for name, content in files.items()})
        remove_curves(self.folder)  # they are drawn again from the history: no epoch twice, none missing
        self.writers = {row: SummaryWriter(self.folder / name) for row, name in {"": ".", **curves}.items()}
        for record in self.history:
            self.draw(record)

    def describe(self) -> dict:
        """How the run is made: what parameters.json holds. starts: this start and those that it continues."""
        last = self.checkpoint or {"starts": [], "tally": {"steps": 0}}
        start = {"epoch": len(self.history) + 1, "step": last["tally"]["steps"], "command": shlex.join(sys.argv),
                 "environment": environment(self.device)}
        return {
            **vars(self.args),
            "method": self.method or "baseline",
            "milestones": self.milestones(),
            "classes": self.train_loader.classes,
            "mean": self.train_loader.mean,
            "std": self.train_loader.std,
            "weights": sum(p.numel() for p in self.trainer.model.parameters()),
            "command": start["command"],
            "environment": start["environment"],
            "starts": [*last["starts"], start],
        }

    def open_log(self) -> None:
        log.setLevel(logging.INFO)
        log.handlers = [logging.FileHandler(self.folder / "train.log", encoding="utf-8"),
                        logging.StreamHandler(sys.stdout)]
        for handler in log.handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
            handler.handleError = lambda record: None  # a full disk is told once, by the checkpoint

    def draw(self, record: dict) -> None:
        """One epoch's figures to TensorBoard: those of the ensemble (or of the only network) under Train/ and Test/,
        a student's as Test/stu0AccTop1, a row's with a sub-folder of its own under the plain tags there; a matrix as an
        image."""
        for name, value in record.items():
            if isinstance(value, list):  # [p, p], row a: whom peer a attends to; white is 1
                image = np.kron(np.array(value), np.ones((32, 32)))
                self.writers[""].add_image(name.capitalize(), image, record["epoch"], dataformats="HW")
            if not isinstance(value, float):
                continue
            row, phase, figure = re.fullmatch(r"(?:(.*?)(train|val|test)_)?(.*)", name).groups()
            figure = figure[0].upper() + figure[1:]
            prefix = "" if row in self.writers else row
            tag = f"{phase.capitalize()}/{prefix}{figure}" if phase else figure
            self.writers.get(row, self.writers[""]).add_scalar(tag, value, record["epoch"])

    def best(self) -> dict:
        """The record of the best epoch so far, a tie going to the later."""
        return max(self.history, key=lambda record: (record[self.best_figure], record["epoch"]))

    def record(self, record: dict) -> None:
        """Write down an epoch that is over: checkpoints, JSON and curves."""
        self.history.append(record)
        best = self.best() is record
        if best or len(self.history) % self.args.save_every == 0 or len(self.history) == self.args.num_epochs:
            self.save(best)
        parallel.on_main(self.write_records)

    def json_lines(self) -> bytes:
        """metrics.jsonl: a line for each epoch."""
        return "".join(json.dumps(line) + "\n" for line in self.history).encode()

    def write_records(self) -> None:
        """metrics.jsonl and the curves, after an epoch."""
        save({self.folder / "metrics.jsonl": self.json_lines()})
        self.draw(self.history[-1])
        for writer in self.writers.values():
            writer.flush()

    def save(self, best: bool = False) -> None:
        """last.pth and, where the epoch that is just over is the best one, best.pth with its metrics.

        last.pth is renamed first: best.pth is never of an epoch that last.pth does not have, and where the process
        ends between the two, ``restore`` writes the missing one.
        """
        state = self.state()  # every process has a part in it

        def write() -> None:
            content = serialise(state)
            files = {self.folder / "last.pth": content}
            if best:
                files |= {self.folder / "best.pth": content,
                          self.folder / "test_best_metrics.json": as_json(self.history[-1])}
            save(files)

        parallel.on_main(write)

    def state(self) -> dict:
        """A checkpoint's content. random: one state for each process."""
        return {
            "format": FORMAT,
            **self.trainer.state_dict(),
            "random": parallel.gather(random_state(self.device)),
            "history": self.history,
            "best": self.best() if self.history else None,
            "recipe": self.recipe,
            "flags": {"method": self.method, **vars(self.args)},
            **{name: self.parameters[name] for name in ("classes", "mean", "std", "starts")},
        }

    def finish(self) -> tuple[dict, dict]:
        """Write the summary of a training that reached its end; -> the records of its best and of its last epoch."""
        best, last = self.best(), self.history[-1]
        summary = {"chosen_by": self.best_figure, "best": best, "last": last}
        parallel.on_main(lambda: save({self.folder / "summary.json": as_json(summary)}))
        return best, last

    def close(self) -> None:
        """Close log and curves, and let another process train here."""
        if not parallel.is_main():
            return
        for writer in self.writers.values():
            writer.close()
        for handler in log.handlers:
            handler.close()
        log.handlers = []
        self.lock.release()


# --- files ----------------------------------------------------------------------------------------------------------


def remove_curves(folder: Path) -> None:
    """TensorBoard's files of a run."""
    for events in folder.glob("events.out.tfevents.*"):
        events.unlink()
    shutil.rmtree(folder / "B", ignore_errors=True)


def remove_run(folder: Path) -> None:
    """Delete what a run wrote into its folder, and nothing else."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
        (folder / (name + ".tmp")).unlink(missing_ok=True)
    remove_curves(folder)


class Lock:
    """One process to a run's folder; UserError where another one has it.

    A POSIX record lock: the system drops it however the process ends, and unlike flock's it is not inherited by the
    loader's worker processes, which outlive a killed one by some seconds.
    """

    def __init__(self, folder: Path):
        self.file = open(folder / "lock", "a")
        try:
            if fcntl is not None:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                warn(f"{folder} is on a file system without locks ({error.strerror}): see that no other process trains "
                     "there")
                return
            self.file.close()
            raise UserError(f"another process is training in {folder}: wait for it, or name this run with "
                            "--version") from error

    def release(self) -> None:
        self.file.close()


# --- signals ----------------------------------------------------------------------------------------------------------


REPEAT = 5  # seconds in which another signal to one of several processes is the same one, passed on by torchrun


class Interrupted(Exception):
    """SIGINT or SIGTERM came, and the step that it came in is done."""

    def __init__(self, number: int):
        self.number = number


class Signals:
    """While entered, SIGINT and SIGTERM are noted, for ``watch`` to raise Interrupted between two steps; the second
    one ends the process at once, as it would have without us."""

    number = 0

    def __init__(self):
        self.agreed = parallel.greatest(0)

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # Python lets no other one handle signals
            self.old = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        for number, handler in getattr(self, "old", {}).items():
            signal.signal(number, handler)
        if kind in (None, SystemExit):  # else another process may have gone, whose answer never comes
            self.agreed()

    def note(self, number: int, frame: object) -> None:
        if self.number and time.monotonic() - self.since >= (REPEAT if parallel.world_size() > 1 else 0):
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not self.number:
            self.number, self.since = number, time.monotonic()

    def watch(self, batches: Iterable) -> Iterator:
        """The batches, and Interrupted before the next one, or after the last, once a signal has come."""
        for batch in batches:
            self.check()
            yield batch
        self.check()

    def check(self) -> None:
        """Several processes stop together: at the step after the one in which the first of them got its signal, so that
        none waits for the answers of the others."""
        if parallel.world_size() == 1:
            number = self.number
        else:
            number, self.agreed = self.agreed(), parallel.greatest(self.number)
        if number:
            raise Interrupted(number)


# --- teacher ----------------------------------------------------------------------------------------------------------


def load_teacher(args: argparse.Namespace, run: Run) -> Callable[[Tensor], Tensor]:
    """--T_model with the weights of --T_model_path, frozen: images [B, 3, H, W] -> logits [B, C], without gradient."""
    teacher = create_model(args.T_model, run.num_classes)
    path = args.T_model_path or Path(args.save_dir, args.dataset, args.T_model)
    parallel.main_first(lambda: load_weights(teacher, path))
    run.pin("teacher", digest(teacher.state_dict()))
    teacher.to(run.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    @torch.no_grad()
    def logits(images: Tensor) -> Tensor:
        return teacher(images)

    return logits
