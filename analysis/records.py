"""The records of finished runs: find them, read them, check them."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from runtime.errors import UserError
from training.folder import LATER_FLAGS
from training.outputs import FUSED, GATE, LEADER, MEAN, WHOLE, metric, parse, student

DATA = ("dataset", "classes", "mean", "std")
RECIPE = ("num_epochs", "batch_size", "lr", "milestones", "wd", "train_size", "val_size", "amp", "compile", "tf32",
          "sync_bn", "decoder")
TYPES = {"num_epochs": int, "seed": int, "batch_size": int, "lr": int | float, "wd": int | float, "val_size": int,
         "train_size": int, "milestones": list, "classes": list, "model": str, "method": str, "dataset": str,
         "command": str, "environment": dict}


class RecordedRun(NamedTuple):
    """A run folder's parameters.json (flags) and metrics.jsonl (history: the metrics of each epoch)."""

    folder: Path
    flags: dict
    history: list[dict]

    @property
    def output(self) -> str:
        """The output that represents the method in tables: the leader, the mean of the students, or the network."""
        measured = test_outputs(self.history[-1])
        return next(output for output in (LEADER, MEAN, WHOLE) if output in measured)

    def error(self, epoch: str, output: str) -> tuple[float, int]:
        """-> top-1 test error of an output in %, and the number of its epoch. epoch: "last" or "best".

        The best epoch is that of the highest accuracy on the held-out images, or on the test images if none were held
        out. Of several epochs with that accuracy, the last one is the best.
        """
        held_out = metric(output, "val", "accTop1")  # of --val_size, or of the data set's own val/
        accuracy = held_out if held_out in self.history[-1] else metric(output, "test", "accTop1")
        record = self.history[-1] if epoch == "last" else max(self.history, key=lambda r: (r[accuracy], r["epoch"]))
        return 100 - record[metric(output, "test", "accTop1")], record["epoch"]


def test_outputs(record: dict) -> list[str]:
    """The outputs that have a test accuracy in the record of an epoch."""
    return [output for output, phase, name in map(parse, record) if (phase, name) == ("test", "accTop1")]


def compared_metrics(record: dict) -> list[str]:
    """The names of an epoch's metrics, sorted, without the single terms of the loss: older code recorded fewer."""
    return sorted(name for name in record if not name.startswith("train_loss_"))


def find_runs(paths: Iterable[Path]) -> tuple[list[RecordedRun], list[str]]:
    """-> the finished runs in these folders and below them, and a sentence about each run that is left out."""
    runs, notes = [], []
    for path in paths:
        folders = sorted({file.parent for name in ("parameters.json", "metrics.jsonl") for file in path.rglob(name)})
        if not folders:
            notes.append(f"{path} {'holds no run' if path.exists() else 'does not exist'}")
        for folder in folders:
            if any(folder.samefile(run.folder) for run in runs):
                continue
            try:
                runs.append(read_run(folder))
            except UserError as error:
                notes.append(str(error))
    return runs, notes


def read_run(folder: Path) -> RecordedRun:
    """UserError if the folder holds no finished run, or if its records are damaged."""
    try:
        flags = LATER_FLAGS | json.loads((folder / "parameters.json").read_text())
        history = [with_attention_self(record) for record in read_json_lines(folder / "metrics.jsonl")]
        named = flags.get("models") or []
        if not isinstance(named, list) or named and (len(named) != flags.get("num_branches")
                                                     or not all(isinstance(name, str) for name in named)):
            raise ValueError(f"models is {named!r}")
        wrong = [name for name in (*DATA, *RECIPE, *TYPES) if not isinstance(flags[name], TYPES.get(name, object))]
        if wrong:
            raise ValueError(f"{wrong[0]} is {flags[wrong[0]]!r}")
        epochs = [record["epoch"] for record in history]
    except FileNotFoundError as error:
        raise UserError(f"{folder} is left out: it has no {Path(error.filename).name}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is left out: its records are not those of a run of this project "
                        f"({type(error).__name__}: {error})") from error
    planned = flags["num_epochs"]
    if epochs != list(range(1, len(epochs) + 1)) or len(epochs) > planned or planned < 1:
        raise UserError(f"{folder} is left out: its epochs are not those from 1 to {planned}")
    if len(epochs) < planned:
        raise UserError(f"{folder} is left out: it has {len(epochs)} of {planned} epochs, --resume continues it")
    check_metrics(folder, flags, history)
    return RecordedRun(folder, flags, history)


def read_json_lines(path: Path) -> list:
    """The values in a file with one JSON value per line. ValueError names the first line that is not JSON."""
    values = []
    for i, line in enumerate(path.read_text().splitlines(), 1):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"line {i} of {path.name} is not JSON") from error
    return values


def with_attention_self(record: dict) -> dict:
    """The record of an epoch with attention_self, the mean of alpha_aa. Older code recorded only the matrix.

    A run that older code began and newer code continued has both kinds of records.
    """
    attention = record.get("attention")
    if "attention_self" in record or not attention or not is_attention(attention):
        return record
    return record | {"attention_self": fmean(row[a] for a, row in enumerate(attention))}


def check_metrics(folder: Path, flags: dict, history: list[dict]) -> None:
    """UserError if tables and figures cannot be made from the records of these epochs."""
    names = history[-1].keys()
    phases = ("test", "val") if flags["val_size"] else ("test",)
    outputs = {WHOLE, MEAN} if "num_branches" in flags else {WHOLE}
    outputs |= {LEADER, GATE, FUSED} & set(test_outputs(history[-1]))
    outputs |= {student(i) for i in range(len(flags.get("models") or []))}
    missing = sorted({metric(output, phase, "accTop1") for output in outputs for phase in phases} - names)
    accuracies = [name for name in names if parse(name).phase in ("test", "val") and parse(name).name == "accTop1"]
    problem = None
    if any(compared_metrics(record) != compared_metrics(history[-1]) for record in history):
        problem = "its epochs do not all have the same metrics"
    elif missing:
        problem = f"its epochs have no {missing[0]}"
    elif not all(is_number(record[name], 0, 100) for record in history for name in accuracies):
        problem = "an accuracy is not a number from 0 to 100"
    elif not all(is_number(record.get("dist", 0), 0) for record in history):
        problem = "dist, its diversity, is not a finite number"
    elif any(None in row for record in history for row in rows_of(record.get("attention"))):
        problem = "its attention has weights that are not finite numbers: the training diverged"
    elif not all(is_attention(record.get("attention", [[1]])) for record in history):
        problem = "its attention is not a square of weights"
    elif not all(is_number(record.get("attention_self", 0), 0, 1.001) for record in history):
        problem = "attention_self is not a weight"
    if problem:
        raise UserError(f"{folder} is left out: {problem}")


def is_number(value: object, low: float, high: float = math.inf) -> bool:
    """Whether the value is a finite number from low to high."""
    return isinstance(value, int | float) and math.isfinite(value) and low <= value <= high


def rows_of(attention: object) -> list[list]:
    """The rows of a recorded attention matrix; none if it is something else."""
    return [row for row in attention if isinstance(row, list)] if isinstance(attention, list) else []


def is_attention(value: object) -> bool:
    """Whether the value is None or a matrix [peers, peers] of weights. Rounding may give slightly more than 1."""
    return value is None or isinstance(value, list) and all(
        isinstance(row, list) and len(row) == len(value) and all(is_number(weight, 0, 1.001) for weight in row)
        for row in value)
