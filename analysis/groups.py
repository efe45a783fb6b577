"""All runs in one pandas table, a row for each run. Runs that belong together form groups."""

import json
from collections.abc import Collection, Iterable
from statistics import fmean, stdev

import pandas as pd

from analysis.records import RecordedRun, compared_metrics, test_outputs
from analysis.titles import network_title
from methods import title_of
from training.folder import FREE_FLAGS
from training.outputs import EMA_MEAN, FUSED, GATE, LEADER, MEAN, WHOLE, metric, student

# Flags that may differ within a group: the seed, paths, how a run was started, and what follows from other flags.
# choose_E may differ because report.py finds the best epoch itself, for each table anew.
MAY_DIFFER = (FREE_FLAGS - {"num_epochs"}) | {
    "seed", "command", "environment", "starts", "weights", "schedule", "choose_E"}
# What the last epoch measured -> its column in the table: errors of outputs, and the diversity.
COLUMNS = {LEADER: "leader", MEAN: "students", WHOLE: "ensemble", GATE: "gated_ensemble", FUSED: "fused_classifier",
           EMA_MEAN: "mean_peers", "dist": "diversity"}


def table_of_runs(runs: Iterable[RecordedRun]) -> tuple[pd.DataFrame, list[str]]:
    """-> a row for each run, sorted by group and seed; and notes about seeds that occur twice or are alone in a group.

    Runs form a group if all their flags agree, except those in MAY_DIFFER. Runs with different numbers of processes
    form different groups, because each process has its own BatchNorm statistics. Runs with different metrics
    also form different groups.
    """
    table = pd.DataFrame([row_of(run) for run in runs])
    table["group"] = pd.factorize(table["group"])[0]  # numbered in the order in which the groups are found
    first = table.groupby(["group", "seed"])["folder"].transform("first")
    notes = [f"{folder} is left out: it has the flags and the seed of {twin}"
             for folder, twin in zip(table["folder"], first, strict=True) if folder != twin]
    table = table[table["folder"] == first].sort_values(["group", "seed"])
    alone = table.groupby("group")["seed"].transform("size") == 1
    notes += [f"{folder} is the only seed of its group: no standard deviation" for folder in table["folder"][alone]]
    return table, notes


def row_of(run: RecordedRun) -> dict:
    """A run's row. best, last: top-1 error of the method's own output in %; ensemble_best: the same of the ensemble.

    students_by_name: the errors of different networks (--models), whose mean says little. Empty for equal networks.
    """
    flags = {name: value for name, value in run.flags.items() if name not in MAY_DIFFER}
    flags["processes"] = run.flags["environment"].get("processes", 1)
    last = run.history[-1]
    row = {"group": json.dumps([flags, compared_metrics(last)], sort_keys=True),
           "folder": str(run.folder), "flags": flags,
           **{name: run.flags[name] for name in ("dataset", "model", "method", "seed", "command")},
           "num_branches": run.flags.get("num_branches", 4),  # tables show single networks beside groups of four
           "history": run.history}
    row["best"], row["best_epoch"] = run.error("best", run.output)
    row["ensemble_best"], row["ensemble_best_epoch"] = run.error("best", WHOLE)
    row["last"], _ = run.error("last", run.output)
    row |= {COLUMNS[output]: 100 - last[metric(output, "test", "accTop1")]
            for output in test_outputs(last) if output in COLUMNS}
    row |= {"diversity": last["dist"]} if "dist" in last else {}
    row["students_by_name"] = {f"student {i}, {network_title(name)}": 100 - last[metric(student(i), "test", "accTop1")]
                               for i, name in enumerate(run.flags.get("models") or [])}
    return row


def split(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each group."""
    return [group for _, group in runs.groupby("group")]


def split_by(runs: pd.DataFrame, names: Collection[str]) -> list[pd.DataFrame]:
    """The rows that agree in these flags, together."""
    values = runs["flags"].map(lambda flags: json.dumps([flags.get(name) for name in names]))
    return [part for _, part in runs.groupby(values, sort=False)]


def flags_of(group: pd.DataFrame) -> dict:
    """The flags that the runs of a group share."""
    return group["flags"].iloc[0]


def labels_of(groups: list[pd.DataFrame]) -> list[str]:
    """A label for each group: its method, and the flags in which it differs from other groups of this method."""
    labels = []
    for flags in map(flags_of, groups):
        same_method = [other for other in map(flags_of, groups) if other["method"] == flags["method"]]
        differing = sorted(name for name in flags.keys() - {"model", "num_branches"}
                           if any(other.get(name) != flags[name] for other in same_method))
        text = ", ".join(f"{name} {flags[name]}" for name in differing)
        labels.append(title_of(flags["method"]) + (f" ({text})" if text else ""))
    return labels


def mean_and_deviation(values: pd.Series) -> list[float | None]:
    """-> the mean, and the standard deviation (over n - 1), which is None for a single value."""
    return [fmean(values), stdev(values) if len(values) > 1 else None]  # exact; pandas rounds sums in the last bit
