"""What last.pth and best.pth hold, and how a run is restored from them."""

import random
from pathlib import Path

import numpy as np
import torch

from runtime import processes
from runtime.checkpoints import load_checkpoint, serialise
from runtime.errors import UserError
from runtime.files import as_json, save
from training.log import log
from training.step import Trainer

FORMAT = 2  # of a checkpoint
# The entries that a resumed run needs, and their types.
PARTS = {"format": int, "flags": dict, "recipe": dict, "history": list, "random": list, "starts": list,
         "state_dict": dict, "optimizer": dict, "scheduler": dict, "scaler": dict, "tally": dict}


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

    history: the records of all epochs so far, shared with the loop. chosen_by: the metric that chooses the best epoch.
    fixed: the entries of a checkpoint that stay the same: flags, recipe, starts and what describes the data.
    """

    def __init__(self, folder: Path, trainer: Trainer, history: list[dict], chosen_by: str, fixed: dict):
        self.folder, self.trainer, self.history = folder, trainer, history
        self.chosen_by, self.fixed = chosen_by, fixed

    def best(self) -> dict:
        """The record of the best epoch so far; of two equal ones the later."""
        return max(self.history, key=lambda record: (record[self.chosen_by], record["epoch"]))

    def state(self) -> dict:
        """A checkpoint's content. random: one state per process."""
        return {
            "format": FORMAT,
            **self.trainer.state_dict(),
            "random": processes.gather(random_state(self.trainer.device)),
            "history": self.history,
            "best": self.best() if self.history else None,
            **self.fixed,
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
        """Set model, optimizer, schedule, sums of a begun epoch and random numbers from ``checkpoint``."""
        self.trainer.load_state_dict(checkpoint)
        states = checkpoint["random"]
        if len(states) == processes.world_size():
            set_random_state(states[processes.rank()], self.trainer.device)
        if self.history and self.saved_best() is None:
            if self.trainer.sums.steps == 0 and self.best() is self.history[-1]:
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
