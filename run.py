"""A run and its folder: the data and device it works with, its log, its figures, its curves and its checkpoints."""

import argparse
import io
import json
import logging
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data_loader import Loader, dataloader
from errors import UserError
from models import create_model, load_official_state_dict
from utils import environment, pick_device, run_folder, seed_everything, set_precision

log = logging.getLogger("okddip")

FORMAT = 1  # of a checkpoint
# Flags that may differ between a run and its continuation: none of them changes what is computed.
FREE_FLAGS = {"resume", "overwrite", "save_dir", "data_dir", "cache", "num_workers", "gpu_id", "device",
              "log_every", "num_epochs", "version", "T_model_path"}
FILES = ("train.log", "last.pth", "best.pth", "metrics.jsonl", "test_best_metrics.json", "summary.json",
         "parameters.json")


class Run:
    """Everything of a training but the model and the method.

    Made first, before there is a model: it checks the folder, loads the data, picks the device and sets the seed, and
    raises UserError where one of these fails. ``open`` makes the folder, once nothing can fail any more.
    """

    def __init__(self, args: argparse.Namespace, method: str = ""):
        self.args, self.method = args, method
        self.folder = run_folder(args, method)
        self.device = pick_device(args)
        self.checkpoint = self.load_last() if args.resume else None
        self.history: list[dict] = self.checkpoint["history"] if self.checkpoint else []
        # the schedule and the ramp-up are those of the first start, also where --num_epochs was raised later
        self.recipe = self.checkpoint["recipe"] if self.checkpoint else {"num_epochs": args.num_epochs}
        self.train_loader, self.test_loader = dataloader(
            args.dataset, args.batch_size, args.num_workers, args.data_dir, seed=args.seed, device=self.device,
            cache=args.cache == "on", val_size=args.val_size)
        self.num_classes = self.train_loader.num_classes
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

    def load_last(self) -> dict:
        path = Path(self.args.resume)
        checkpoint = load_checkpoint(path / "last.pth" if path.is_dir() else path)
        missing = {"format", "flags", "recipe", "history", "state_dict", "optimizer", "scheduler", "scaler",
                   "random"} - checkpoint.keys()
        if missing:
            raise UserError(f"{path} cannot be resumed: it has no {', '.join(sorted(missing))}")
        if checkpoint["format"] != FORMAT:
            raise UserError(f"{path} has checkpoint format {checkpoint['format']}, this code resumes {FORMAT}")
        flags = {"method": self.method, **vars(self.args)}
        changed = [f"--{name} {checkpoint['flags'].get(name)} there, {value} here" for name, value in flags.items()
                   if name not in FREE_FLAGS and checkpoint["flags"].get(name) != value]
        if changed:
            raise UserError(f"{path} was started otherwise ({'; '.join(changed)}): resume with the same flags")
        return checkpoint

    def restore(self) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(self.checkpoint[name])
        set_random_state(self.checkpoint["random"], self.device)
        self.checkpoint = None

    # --- the folder

    def open(self, trainer, best: str, two_levels: bool) -> None:
        """Make the folder (or take up the one that is resumed) and write down how the run is made.

        best: the figure that chooses the best epoch; two_levels: there is a group leader, with curves of its own.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.parts = {"state_dict": trainer.model, "optimizer": trainer.optimizer, "scheduler": trainer.scheduler,
                      "scaler": trainer.scaler}
        self.best_figure = best if self.train_loader.held_out is None else best.replace("test_", "val_")
        if self.checkpoint:
            self.restore()
        else:
            remove_run(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.open_log()
        self.parameters = {
            **vars(self.args),
            "method": self.method or "baseline",
            "milestones": self.milestones(),
            "classes": self.train_loader.classes,
            "mean": self.train_loader.mean,
            "std": self.train_loader.std,
            "weights": sum(p.numel() for p in trainer.model.parameters()),
            "command": " ".join(sys.argv),
            "environment": environment(self.device),
        }
        save_json(self.folder / "parameters.json", self.parameters)
        remove_curves(self.folder)  # they are drawn again from the history: no epoch twice, none missing
        self.writers = {"": SummaryWriter(self.folder)}
        if two_levels:
            self.writers["stu_"] = SummaryWriter(self.folder / "B")
        for record in self.history:
            self.draw(record)

    def open_log(self) -> None:
        log.setLevel(logging.INFO)
        log.handlers = [logging.FileHandler(self.folder / "train.log", encoding="utf-8"),
                        logging.StreamHandler(sys.stdout)]
        for handler in log.handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))

    def draw(self, record: dict) -> None:
        """One epoch's figures to TensorBoard: those of the ensemble (or of the only network) under Train/ and Test/,
        the leader's under the same tags in the sub-folder B, a peer's as Test/stu0AccTop1, a matrix as an image."""
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
        checkpoint = self.serialise()
        if self.best() is record:
            save(self.folder / "best.pth", checkpoint)
            save_json(self.folder / "test_best_metrics.json", record)
        save(self.folder / "last.pth", checkpoint)
        save(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.history).encode())
        self.draw(record)
        for writer in self.writers.values():
            writer.flush()

    def serialise(self) -> bytes:
        """The checkpoint: tensors, numbers, strings, lists and dictionaries alone, so that loading it is safe."""
        buffer = io.BytesIO()
        torch.save({
            "format": FORMAT,
            **{name: part.state_dict() for name, part in self.parts.items()},
            "random": random_state(self.device),
            "history": self.history,
            "recipe": self.recipe,
            "flags": {"method": self.method, **vars(self.args)},
            **{name: self.parameters[name] for name in ("classes", "mean", "std")},
        }, buffer)
        return buffer.getvalue()

    def finish(self) -> tuple[dict, dict]:
        """Write the summary of a training that reached its end; -> the records of its best and of its last epoch."""
        best, last = self.best(), self.history[-1]
        save_json(self.folder / "summary.json", {"chosen_by": self.best_figure, "best": best, "last": last})
        return best, last

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
        for handler in log.handlers:
            handler.close()
        log.handlers = []


# --- files ----------------------------------------------------------------------------------------------------------


def save(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: a temporary file beside it, synced, then renamed over it."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save_json(path: Path, value: object) -> None:
    save(path, (json.dumps(value, indent=2) + "\n").encode())


def remove_curves(folder: Path) -> None:
    for events in folder.glob("events.out.tfevents.*"):
        events.unlink()
    shutil.rmtree(folder / "B", ignore_errors=True)


def remove_run(folder: Path) -> None:
    """Delete what a run wrote into its folder, and nothing else."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    remove_curves(folder)


def load_checkpoint(path: Path) -> dict:
    """A checkpoint's dictionary, read without running any code from the file; UserError where it is not one."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint at {path}") from error
    except (PermissionError, IsADirectoryError) as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # torch.load raises whatever zip files, pickles and archives raise
        raise UserError(f"{path} is not a checkpoint that can be loaded safely: it is damaged, or holds "
                        f"more than tensors and plain values ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(checkpoint).__name__} instead of a dictionary")
    return checkpoint


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Weights of a finished network: a run folder (its best.pth), or a file of ours or of the authors' code.

    UserError where the file is missing, is not a checkpoint, or belongs to another network or class count.
    """
    path = Path(path)
    path = path / "best.pth" if path.is_dir() else path
    checkpoint = load_checkpoint(path)
    weights: dict[str, Tensor] = checkpoint.get("state_dict", checkpoint)
    try:
        if any(name.startswith("trunk.") for name in weights):
            network.load_state_dict(weights)
        else:
            load_official_state_dict(network, weights)
    except (ValueError, RuntimeError, AttributeError) as error:
        flags = checkpoint.get("flags", {})
        made = f"a {flags['model']} trained on {flags['dataset']}" if flags else "another network"
        reason = " ".join(str(error).split())
        raise UserError(f"{path} holds {made}, which does not fit the {network.name} that was asked for: "
                        f"{reason[:200]}") from error


def load_teacher(args: argparse.Namespace, run: Run) -> Callable[[Tensor], Tensor]:
    """--T_model with the weights of --T_model_path, frozen: images [B, 3, H, W] -> logits [B, C], without gradient."""
    teacher = create_model(args.T_model, run.num_classes)
    load_weights(teacher, args.T_model_path or Path(args.save_dir, args.dataset, args.T_model))
    teacher.to(run.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    @torch.no_grad()
    def logits(images: Tensor) -> Tensor:
        return teacher(images)

    return logits


def random_state(device: torch.device) -> dict:
    name, keys, *rest = np.random.get_state()
    state = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": [name, keys.tolist(), *rest]}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: dict, device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
