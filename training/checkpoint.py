"""The content of last.pth and best.pth, whether a run may continue from one, and how it is restored."""

import argparse
import random
from pathlib import Path

import numpy as np
import torch

from methods import revision
from runtime import processes
from runtime.checkpoints import load_checkpoint, serialise
from runtime.errors import Complete, UserError
from runtime.files import as_json, save
from training.folder import changed, edited, finished_epochs
from training.records import log

FORMAT = 2  # of a checkpoint
# The entries that a resumed run needs, and their types.
PARTS = {"format": int, "flags": dict, "unchangeable": dict, "history": list, "random": list, "starts": list,
         "state_dict": dict, "optimizer": dict, "scheduler": dict, "scaler": dict, "sums": dict}
# Flags of initial weights: with a checkpoint, which has the weights, they have these values.
NOT_STARTED = {"pretrained": False, "init": None}
OLD_NAMES = {"recipe": "unchangeable", "tally": "sums"}  # of entries, in files of older code


def load_to_resume(path: Path, args: argparse.Namespace, method: str, folder: Path) -> dict:
    """The checkpoint at ``path``. UserError if this run cannot continue it; Complete if that training has ended."""
    checkpoint = {OLD_NAMES.get(name, name): part for name, part in load_checkpoint(path).items()}
    if checkpoint.get("format", FORMAT) != FORMAT:
        raise UserError(f"{path} has checkpoint format {checkpoint['format']}, this code resumes {FORMAT}")
    missing = [name for name, kind in PARTS.items() if not isinstance(checkpoint.get(name), kind)]
    if missing:
        raise UserError(f"{path} cannot be resumed: it has no {', '.join(missing)}")
    flags, recorded = {"method": method, **vars(args)}, checkpoint["flags"]
    recorded = recorded | {"method": recorded["method"] or "baseline"}  # "" in files of older code
    if different := changed(recorded, flags):
        raise UserError(f"{path} was started with other flags ({'; '.join(different)}): resume with the same flags")
    begun = checkpoint["unchangeable"].get("revision", 1)
    if begun != revision(method):
        raise UserError(f"{folder} was begun with revision {begun} of {method}, which computed something else than "
                        f"revision {revision(method)} (CHANGELOG.md): train it anew, with --overwrite or another "
                        "--version")
    done, planned = len(checkpoint["history"]), recorded["num_epochs"]
    if args.num_epochs < planned:
        raise UserError(f"--num_epochs of {folder} was {planned}: it can be raised, not lowered")
    if args.cosine and args.num_epochs > planned:
        raise UserError(f"--num_epochs of {folder} was {planned}, where the learning rate of --cosine is 0: train anew "
                        "with another --version")
    last = folder / "last.pth"
    if path.name != "last.pth" and last.exists() and done < len(load_checkpoint(last)["history"]):
        raise UserError(f"{folder} has continued since {path.name}: --resume {folder} resumes it; to go back, copy "
                        f"{path.name} into another folder")
    files = {name: sha256 for name, (_, sha256) in checkpoint.get("files", {}).items()}
    if done >= args.num_epochs and done == finished_epochs(folder) and not edited(files):
        raise Complete(folder, done)
    return checkpoint


def random_state(device: torch.device) -> dict:
    """State of every generator that a training step may use (the loader draws from seed and epoch alone)."""
    name, keys, *rest = np.random.get_state()
    state = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": [name, keys.tolist(), *rest]}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: dict, device: torch.device) -> None:
    """Restore what ``random_state`` returned."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


class Checkpoints:
    """Writes last.pth and best.pth of a run, and restores a training from its checkpoint.

    stepper: the ``Stepper`` whose state they hold. history: the records of all epochs so far, shared with the loop.
    chosen_by: the metric that chooses the best epoch. about: the entries that do not change: flags, starts, the
    unchangeable values, the description of the data.
    """

    def __init__(self, folder: Path, stepper, history: list[dict], chosen_by: str, about: dict):
        self.folder, self.stepper, self.history = folder, stepper, history
        self.chosen_by, self.about = chosen_by, about

    def best(self) -> dict:
        """The record of the best epoch so far; the later one if two are equal."""
        return max(self.history, key=lambda record: (record[self.chosen_by], record["epoch"]))

    def state(self) -> dict:
        """A checkpoint's content. random: one state per process."""
        return {
            "format": FORMAT,
            **self.stepper.state_dict(),
            "random": processes.gather(random_state(self.stepper.device)),
            "history": self.history,
            "best": self.best() if self.history else None,
            **self.about,
        }

    def save(self, best: bool = False) -> None:
        """Write last.pth; if the last epoch is the best one, also best.pth and its metrics.

        last.pth is renamed first, so it always has the epoch of best.pth. If the process is killed between the two
        renames, best.pth is missing; ``restore`` writes it.
        """
        state = self.state()  # every process contributes

        def write() -> None:
            content = serialise(state)
            files = {self.folder / "last.pth": content}
            if best:
                files |= {self.folder / "best.pth": content,
                          self.folder / "test_best_metrics.json": as_json(self.history[-1])}
            save(files)

        processes.on_main(write)

    def restore(self, checkpoint: dict) -> None:
        """Set model, optimizer, schedule, sums of an unfinished epoch and random numbers from ``checkpoint``."""
        self.stepper.load_state_dict(checkpoint)
        states = checkpoint["random"]
        if len(states) == processes.world_size():
            set_random_state(states[processes.rank()], self.stepper.device)
        if self.history and self.saved_best() is None:
            if self.stepper.sums.steps == 0 and self.best() is self.history[-1]:
                self.save(best=True)
            else:
                log.warning(f"{self.folder}/best.pth is missing or does not hold epoch {self.best()['epoch']}, the "
                            "best so far. The next better epoch is saved again.")

    def saved_best(self) -> dict | None:
        """The record of the best epoch if best.pth is intact and of that epoch, else None."""
        def read() -> dict | None:
            try:
                record = load_checkpoint(self.folder / "best.pth")["history"][-1]
                return record if record == self.best() else None
            except (UserError, LookupError):
                return None

        return processes.on_main(read) if self.history else None
