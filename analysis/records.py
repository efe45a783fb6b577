"""The records of finished runs: found, read and checked; one pandas table with a row for each run; groups of rows."""

import json
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import pandas as pd

from methods import position, title_of
from runtime.errors import UserError
from training.folder import FREE_FLAGS, LATER_FLAGS
from training.outputs import EMA_MEAN, FUSED, GATE, LEADER, MEAN, WHOLE, metric, parse, student

DATA = ("dataset", "classes", "mean", "std")
RECIPE = ("num_epochs", "batch_size", "lr", "milestones", "wd", "train_size", "val_size", "amp", "compile", "tf32",
          "sync_bn", "decoder")
# Flags of a recipe that is not the paper's, with their usual values.
OTHER_RECIPE = {name: LATER_FLAGS[name] for name in ("image_size", "optimizer", "cosine", "warmup", "label_smoothing",
                                                     "pretrained", "init")}
# Flags that may differ within a group: the seed, paths, how a run was started, and what follows from other flags.
# choose_E may differ because report.py finds the best epoch itself, for each table anew.
MAY_DIFFER = (FREE_FLAGS - {"num_epochs"}) | {
    "seed", "command", "environment", "starts", "weights", "schedule", "choose_E"}
# What the last epoch measured -> its column in the table: errors of outputs, and the diversity.
COLUMNS = {LEADER: "leader", MEAN: "students", WHOLE: "ensemble", GATE: "gated_ensemble", FUSED: "fused_classifier",
           EMA_MEAN: "mean_peers", "dist": "diversity"}
NETWORKS = {"densenetd40k12": "DenseNet-40-12", "densenetd100k12": "DenseNet-100-12", "wide_resnet20_8": "WRN-20-8"}


class RecordedRun(NamedTuple):
    """A run folder's parameters.json (flags) and metrics.jsonl (history: the metrics of each epoch)."""

    folder: Path
    flags: dict
    history: list[dict]

    @property
    def output(self) -> str:
        """The output that represents the method in tables: the leader, the mean of the students, or the network."""
        measured = test_outputs(self.history[-1])
        return [output for output in (LEADER, MEAN, WHOLE) if output in measured][0]

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
    """The names of an epoch's metrics, sorted, without those that older code did not record yet."""
    return sorted(name for name in record if not name.startswith("train_loss_") and name != "attention_self")


# --- reading ----------------------------------------------------------------------------------------------------------


def find_runs(paths: Iterable[Path]) -> tuple[list[RecordedRun], list[str]]:
    """-> the finished runs in these folders and below them, and a sentence about each run that is left out."""
    runs, notes, done = [], [], set()
    for path in paths:
        folders = sorted(folders_with_records(path, notes))
        if not folders:
            notes.append(f"{path} {'holds no run' if path.exists() else 'does not exist'}")
        for folder in folders:
            if os.path.realpath(folder) in done:
                continue
            done.add(os.path.realpath(folder))
            try:
                runs.append(read_run(folder))
            except UserError as error:
                notes.append(str(error))
    return runs, notes


def folders_with_records(path: Path, notes: list[str]) -> list[Path]:
    """The folders at ``path`` and below it that hold records, also behind links. notes: gets what cannot be read."""
    found, seen = [], set()
    walk = os.walk(path, followlinks=True, onerror=lambda e: notes.append(f"{e.filename} cannot be read: {e.strerror}"))
    for folder, below, files in walk if path.is_dir() else ():
        below.sort(key=lambda name, folder=folder: os.path.islink(os.path.join(folder, name)))  # links last
        if os.path.realpath(folder) in seen:  # a link to a folder above itself
            below.clear()
        elif {"parameters.json", "metrics.jsonl"} & set(files):
            found.append(Path(folder))
        seen.add(os.path.realpath(folder))
    return found


def read_run(folder: Path) -> RecordedRun:
    """UserError if the folder holds no finished run, or if its records are damaged."""
    try:
        flags = LATER_FLAGS | {"revision": 1, "files": {}} | json.loads((folder / "parameters.json").read_text())
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        history = [with_attention_self(record) for record in json.loads("[" + ",\n".join(lines) + "]")]
        run, problem = RecordedRun(folder, flags, history), wrong_epochs(flags, history) or wrong_metrics(history)
        if not problem:
            row_of(run)  # what tables need; an error is reported below
            problem = next((f"it has no {name}" for name in (*DATA, *RECIPE) if name not in flags), None)
    except FileNotFoundError as error:
        problem = f"it has no {Path(error.filename).name}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        problem = f"its records are not those of a run of this project ({type(error).__name__}: {error})"
    if problem:
        raise UserError(f"{folder} is left out: {problem}")
    return run


def wrong_epochs(flags: dict, history: list[dict]) -> str | None:
    """What is wrong with the numbers of the epochs; None: they are those of a finished run."""
    epochs, planned = [record["epoch"] for record in history], flags["num_epochs"]
    if epochs != list(range(1, len(epochs) + 1)) or len(epochs) > planned or planned < 1:
        return f"its epochs are not those from 1 to {planned}"
    return f"it has {len(epochs)} of {planned} epochs, --resume continues it" if len(epochs) < planned else None


def wrong_metrics(history: list[dict]) -> str | None:
    """Why tables and figures cannot be made from the records of these epochs; None: they can."""
    if any(compared_metrics(record) != compared_metrics(history[-1]) for record in history):
        return "its epochs do not all have the same metrics"
    if any(record.get(name, 0) is None for record in history for name in ("dist", "attention_self")):
        return "the training diverged: the diversity or the attention is not a number"
    return None


def with_attention_self(record: dict) -> dict:
    """The record of an epoch with attention_self, the mean of alpha_aa. Older code recorded only the matrix.

    A run that older code began and newer code continued has both kinds of records.
    """
    attention = record.get("attention")
    if "attention_self" in record or not attention:
        return record
    return record | {"attention_self": fmean(row[a] for a, row in enumerate(attention))}


# --- one table of all runs --------------------------------------------------------------------------------------------


def table_of_runs(runs: Iterable[RecordedRun]) -> tuple[pd.DataFrame, list[str]]:
    """-> a row for each run, sorted by group and seed; and notes about repeated and lone seeds.

    Runs form a group if all their flags agree, except those in MAY_DIFFER. Runs with different numbers of processes
    form different groups, because each process has its own BatchNorm statistics. Runs with different metrics
    also form different groups.
    """
    table = pd.DataFrame([row_of(run) for run in runs])
    table["group"] = pd.factorize(table["group"])[0]  # numbered in the order in which the groups are found
    for flags, title in zip(table["flags"], data_titles(table), strict=True):
        flags["data"] = title
    first = table.groupby(["group", "seed"])["folder"].transform("first")
    notes = [f"{folder} is left out: it has the flags and the seed of {twin}"
             for folder, twin in zip(table["folder"], first, strict=True) if folder != twin]
    table = table[table["folder"] == first].sort_values(["group", "seed"])
    seeds = table.groupby("group").size()
    alone = sum(seeds == 1)
    if alone:
        notes.append(f"only one seed, so no standard deviation, in {alone} of {plural(len(seeds), 'group')}")
    return table, notes


def row_of(run: RecordedRun) -> dict:
    """A run's row. best, last: top-1 error of the method's own output in %; ensemble_best, _last: of the ensemble.

    students_by_name: the errors of different networks (--models), whose mean says little. Empty for equal networks.
    """
    flags = {name: value for name, value in run.flags.items() if name not in MAY_DIFFER}
    processes = {start["environment"].get("processes", 1) for start in run.flags["starts"] or [run.flags]}
    flags["processes"] = processes.pop() if len(processes) == 1 else sorted(processes)
    last = run.history[-1]
    row = {"group": json.dumps([flags, compared_metrics(last)], sort_keys=True),
           "folder": str(run.folder), "flags": flags, "history": run.history,
           **{name: run.flags[name] for name in ("dataset", "model", "method", "seed")},
           "command": started(run.flags), "data_dir": str(run.flags.get("data_dir", "")),
           "num_branches": run.flags.get("num_branches", 4)}  # tables show single networks beside groups of four
    for kind, output in (("", run.output), ("ensemble_", WHOLE)):
        row[f"{kind}best"], row[f"{kind}best_epoch"] = run.error("best", output)
        row[f"{kind}last"], _ = run.error("last", output)
    row |= {COLUMNS[output]: 100 - last[metric(output, "test", "accTop1")]
            for output in test_outputs(last) if output in COLUMNS}
    row["diversity"] = last.get("dist")
    row["students_by_name"] = {f"student {i}, {network_title(name)}": 100 - last[metric(student(i), "test", "accTop1")]
                               for i, name in enumerate(run.flags["models"] or [])}
    return row


def started(flags: dict) -> str:
    """The command of a run's last start, as on one machine: the number of machines is not recorded."""
    processes = flags["environment"].get("processes", 1)
    return f"{f'torchrun --nproc_per_node={processes}' if processes > 1 else 'python'} {flags['command']}"


def split(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each group, in the order of methods.py, small groups of students first."""
    groups = [group for _, group in runs.groupby("group")]
    return sorted(groups, key=lambda group: (position(flags_of(group)["method"]), size_of(group)))


def split_by(runs: pd.DataFrame, names: Collection[str]) -> list[pd.DataFrame]:
    """The rows that agree in these flags, together."""
    values = runs["flags"].map(lambda flags: json.dumps([flags.get(name) for name in names]))
    return [part for _, part in runs.groupby(values, sort=False)]


def flags_of(group: pd.DataFrame) -> dict:
    """The flags that the runs of a group share."""
    return group["flags"].iloc[0]


def size_of(group: pd.DataFrame) -> int:
    """The number of students; 4 for single networks."""
    return group["num_branches"].iloc[0]


def mean_and_deviation(values: pd.Series) -> list[float | None]:
    """-> the mean, and the standard deviation (over n - 1), which is None for a single value."""
    return [fmean(values), stdev(values) if len(values) > 1 else None]  # exact; pandas rounds sums in the last bit


# --- titles in tables and figures -------------------------------------------------------------------------------------


def labels_of(groups: list[pd.DataFrame]) -> list[str]:
    """A label for each group: its method, and the flags in which it differs from other groups of this method.

    Dropout, which VGGs have, and the number of processes, each with its own BatchNorm statistics, may differ between
    methods that are compared.
    """
    labels, usual = [], {"dropout": 0, "processes": 1}
    for flags in map(flags_of, groups):
        same_method = [other for other in map(flags_of, groups) if other["method"] == flags["method"]]
        differing = sorted(name for name in flags.keys() - {"model", "num_branches"}
                           if any(other.get(name) != flags[name] for other in same_method)
                           or name in usual and flags[name] != usual[name]
                           and any(flags_of(group).get(name) != flags[name] for group in groups))
        text = ", ".join(f"{name} {flags[name]}" for name in differing)
        labels.append(title_of(flags["method"]) + (f" ({text})" if text else ""))
    return labels


def network_title(model: str, students: int = 4) -> str:
    """A network's name as the paper writes it, "ResNet-32 + VGG-16" for different ones; other group sizes than 4."""
    names = [re.sub(r"^vgg(?=\d+$)", "VGG-", re.sub(r"^resnet(?=\d+$)", "ResNet-", name)) for name in model.split("+")]
    title = " + ".join(NETWORKS.get(name, name) for name in names)
    return title + (f", {plural(students, 'student')}" if students != 4 else "")


def recipe_words(recipe: dict) -> list[str]:
    """The flags of RECIPE and OTHER_RECIPE in words. report.py says once what all recipes have in common."""
    epochs, rate = recipe["num_epochs"], f"learning rate {recipe['lr']:g}"
    steps = [epoch for epoch in recipe["milestones"] if epoch < epochs]
    if steps == [-(-epochs // 2), -(-3 * epochs // 4)]:  # the default
        rate += ", divided by 10 at half and three quarters of the epochs"
    elif steps:
        rate += f", divided by 10 after epochs {' and '.join(map(str, steps))}"
    words = [recipe["train_size"] and f"{recipe['train_size']:,} training images", plural(epochs, "epoch"),
             f"batches of {recipe['batch_size']}", rate, f"weight decay {recipe['wd']:g}",
             recipe["val_size"] and f"best epoch chosen on {recipe['val_size']:,} held-out training images"]
    usual = {"compile": False, "tf32": False, "sync_bn": False, "amp": "off", "decoder": "pil"} | OTHER_RECIPE
    flags = {name: recipe.get(name, value) for name, value in usual.items()}
    words += [f"--{name}" + (f" {value}" if value is not True else "") for name, value in flags.items()
              if value != usual[name]]
    return [word for word in words if word]


def recipe_title(recipe: dict) -> str:
    """The whole recipe in one line."""
    return "; ".join(recipe_words(recipe))


def plural(number: int, word: str) -> str:
    """"1 seed", "3 seeds"."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def data_titles(runs: pd.DataFrame) -> pd.Series:
    """Each run's data: the data set and the number of its classes; if that is not unique, the folder and a number."""
    data = runs["flags"].map(lambda flags: json.dumps([flags[name] for name in DATA]))
    titles = runs["flags"].map(lambda flags: f"{flags['dataset']} ({len(flags['classes'])} classes)")
    folders = runs.groupby(data)["data_dir"].transform("first").map(lambda folder: f", {Path(folder).name or folder}")
    numbers = pd.Series(pd.factorize(data)[0] + 1, runs.index).map(", {}".format)
    for more in (folders, numbers):
        titles += more.where(data.groupby(titles).transform("nunique") > 1, "")
    return titles
