"""The records of finished runs, for report.py and figures.py: read, and grouped by everything but the seed."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from errors import UserError
from run import FREE_FLAGS, LATER_FLAGS

# What may differ within a group: the seed, where a run is and how it was started, a teacher's folder (each seed may
# have its own), and what follows from the rest. choose_E: the best epoch is found here, for each table its own.
WITHIN = (FREE_FLAGS - {"num_epochs"}) | {"seed", "command", "environment", "starts", "weights", "schedule", "choose_E"}
TYPES = {"num_epochs": int, "seed": int, "batch_size": int, "lr": int | float, "wd": int | float, "val_size": int,
         "train_size": int, "milestones": list, "classes": list, "model": str, "method": str, "dataset": str,
         "command": str, "environment": dict}
DATA = ("dataset", "classes", "mean", "std")
RECIPE = ("num_epochs", "batch_size", "lr", "milestones", "wd", "train_size", "val_size", "amp", "compile", "tf32",
          "sync_bn")
CELL = ("model", "method", "num_branches")
METHODS = {"baseline": "Baseline", "KD": "KD", "Ind": "Ind", "DML": "DML", "CL-ILR": "CL-ILR", "ONE": "ONE",
           "OKDDip-N": "OKDDip-N", "OKDDip": "OKDDip-B"}
NETWORKS = {"densenetd40k12": "DenseNet-40-12", "densenetd100k12": "DenseNet-100-12", "wide_resnet20_8": "WRN-20-8"}


class Recorded(NamedTuple):
    """A run folder's parameters.json and metrics.jsonl."""

    folder: Path
    flags: dict
    history: list[dict]

    @property
    def measured(self) -> str:
        """The row that stands for the method in a table: leader, mean of the students, or the only network."""
        names = self.history[-1]
        return next(row for row in ("stu_", "mean_", "") if f"{row}test_accTop1" in names)

    def error(self, epoch: str, row: str) -> tuple[float, int]:
        """-> top-1 error in %, and its epoch: the "last", or the "best" by that row (by the held-out images where
        there are some), a tie going to the later."""
        by = f"{row}{'val' if self.flags['val_size'] else 'test'}_accTop1"
        record = self.history[-1] if epoch == "last" else max(self.history, key=lambda r: (r[by], r["epoch"]))
        return 100 - record[f"{row}test_accTop1"], record["epoch"]


class Group(NamedTuple):
    """Runs that differ in nothing but the seed. flags: those that they share."""

    flags: dict
    runs: list[Recorded]

    @property
    def seeds(self) -> list[int]:
        return [run.flags["seed"] for run in self.runs]

    def matches(self, wanted: dict) -> bool:
        """Whether the flags are these; a run without ``num_branches`` passes for one of 4."""
        return all(self.flags.get(name, 4 if name == "num_branches" else None) == value
                   for name, value in wanted.items())


def read_run(folder: Path) -> Recorded:
    """UserError where the folder holds no run, or one that is not over."""
    try:
        flags = LATER_FLAGS | json.loads((folder / "parameters.json").read_text())
        history = json_lines(folder / "metrics.jsonl")
        wrong = [name for name in (*DATA, *RECIPE, *TYPES) if not isinstance(flags[name], TYPES.get(name, object))]
        if wrong:
            raise ValueError(f"{wrong[0]} is {flags[wrong[0]]!r}")
        epochs = [record["epoch"] for record in history]
    except FileNotFoundError as error:
        raise UserError(f"{folder} is left out: it has no {Path(error.filename).name}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is left out: its records are not a run's of this project "
                        f"({type(error).__name__}: {error})") from error
    planned = flags["num_epochs"]
    if epochs != list(range(1, len(epochs) + 1)) or len(epochs) > planned or planned < 1:
        raise UserError(f"{folder} is left out: its epochs are not those from 1 to {planned}")
    if len(epochs) < planned:
        raise UserError(f"{folder} is left out: it has {len(epochs)} of {planned} epochs, --resume continues it")
    if wrong := wrong_figures(flags, history):
        raise UserError(f"{folder} is left out: {wrong}")
    return Recorded(folder, flags, history)


def json_lines(path: Path) -> list:
    """ValueError with the number of a line that is not JSON."""
    values = []
    for i, line in enumerate(path.read_text().splitlines(), 1):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"line {i} of {path.name} is not JSON") from error
    return values


def wrong_figures(flags: dict, history: list[dict]) -> str | None:
    """Why tables and pictures cannot be made of these epochs; None where they can."""
    names = history[-1].keys()
    if any(record.keys() != names for record in history):
        return "its epochs have not all of them the same figures"
    rows = {"", "mean_"} if "num_branches" in flags else {""}
    rows |= {row for row in ("stu_", "gate_") if f"{row}test_accTop1" in names}
    kinds = ("test", "val") if flags["val_size"] else ("test",)
    missing = sorted({f"{row}{kind}_accTop1" for row in rows for kind in kinds} - names)
    if missing:
        return f"its epochs have no {missing[0]}"
    accuracies = [name for name in names if name.endswith(("test_accTop1", "val_accTop1"))]
    if not all(is_number(record[name], 0, 100) for record in history for name in accuracies):
        return "an accuracy is not a number from 0 to 100"
    if not all(is_number(record.get("dist", 0), 0) for record in history):
        return "dist, its diversity, is not a finite number"
    if not all(is_attention(record.get("attention", [[1]])) for record in history):
        return "its attention is not a square of weights"
    return None


def is_number(value: object, low: float, high: float = math.inf) -> bool:
    """Whether it is finite, and from low to high."""
    return isinstance(value, int | float) and math.isfinite(value) and low <= value <= high


def is_attention(value: object) -> bool:
    """Whether it is a matrix [peers, peers] of weights from 0 to 1 (and what rounding adds), or nothing."""
    return value is None or isinstance(value, list) and all(
        isinstance(row, list) and len(row) == len(value) and all(is_number(weight, 0, 1.001) for weight in row)
        for row in value)


def find_runs(paths: Iterable[Path]) -> tuple[list[Recorded], list[str]]:
    """-> the finished runs in and below ``paths``, and a sentence about whatever else is there."""
    runs, notes = [], []
    for path in paths:
        files = [f for name in ("parameters.json", "metrics.jsonl") for f in sorted(path.rglob(name))]
        folders = sorted({f.parent for f in files})
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


def group(runs: Iterable[Recorded]) -> tuple[list[Group], list[str]]:
    """By everything but the seed, and by the number of processes, each of which has BatchNorm statistics of its own; ->
    the groups, and a sentence about every seed that stands alone or comes twice."""
    found: dict[str, Group] = {}
    notes = []
    for run in runs:
        flags = {name: value for name, value in run.flags.items() if name not in WITHIN}
        flags["processes"] = run.flags["environment"].get("processes", 1)
        key = json.dumps([flags, sorted(run.history[-1])], sort_keys=True)  # and what was measured
        members = found.setdefault(key, Group(flags, [])).runs
        twin = next((other for other in members if other.flags["seed"] == run.flags["seed"]), None)
        if twin:
            notes.append(f"{run.folder} is left out: it has the flags and the seed of {twin.folder}")
        else:
            members.append(run)
    for key, members in found.items():
        found[key] = Group(members.flags, sorted(members.runs, key=lambda run: run.flags["seed"]))
        if len(members.runs) == 1:
            notes.append(f"{members.runs[0].folder} is the only seed of its group: no standard deviation")
    return list(found.values()), notes


def by(groups: Iterable[Group], names: Iterable[str]) -> Iterator[list[Group]]:
    """The groups that agree in these flags, together."""
    together: dict[str, list[Group]] = {}
    for g in groups:
        together.setdefault(json.dumps([g.flags.get(name) for name in names]), []).append(g)
    yield from together.values()


# --- words ------------------------------------------------------------------------------------------------------------


def title_of(model: str) -> str:
    """A network's name as the paper writes it."""
    return NETWORKS.get(model) or model.replace("resnet", "ResNet-").replace("vgg", "VGG-")


def recipe_in_words(recipe: dict) -> str:
    """The flags of RECIPE as a heading."""
    steps = " and ".join(str(epoch) for epoch in recipe["milestones"] if epoch < recipe["num_epochs"])
    words = [f"{recipe['num_epochs']} epoch{'s' * (recipe['num_epochs'] > 1)}", f"batches of {recipe['batch_size']}",
             f"learning rate {recipe['lr']:g}" + (f", divided by 10 after epochs {steps}" if steps else ""),
             f"weight decay {recipe['wd']:g}"]
    if recipe.get("train_size", 0):
        words.append(f"trained on {recipe['train_size']} training images")
    if recipe["val_size"]:
        words.append(f"best epoch chosen on {recipe['val_size']} held-out training images")
    words += [f"--{name}" for name in ("compile", "tf32", "sync_bn") if recipe[name]]
    words += [f"--amp {recipe['amp']}"] if recipe["amp"] != "off" else []
    return "; ".join(words)
