"""The report's content: runs in the layout of the paper's tables (results/published.json), and tables of the others."""

import re
from pathlib import Path

import pandas as pd

from analysis.differences import tables_of_differences
from analysis.groups import COLUMNS, flags_of, labels_of, mean_and_deviation, split, split_by
from analysis.records import DATA, RECIPE
from analysis.titles import data_title, network_title
from methods import position, title_of

PUBLISHED = Path(__file__).parent.parent / "results" / "published.json"


def sections(runs: pd.DataFrame, published: dict) -> list[dict]:
    """A section for each recipe. published: the content of results/published.json.

    A section has only those tables of the paper that contain at least one run which is not in an earlier table. Other
    runs follow in a table for each data set.
    """
    found = []
    for same_recipe in split_by(runs, RECIPE):
        tables, shown = [], set()
        for name, layout in published["tables"].items():
            table = paper_table(name, layout, same_recipe, published["method"])
            folders = {folder for row in table["rows"] for cell in row["cells"] for group in cell["groups"]
                       for folder in group["runs"]}
            if not folders <= shown:
                tables.append(table)
                shown |= folders
        others = same_recipe[~same_recipe["folder"].isin(shown)]
        tables += [other_table(same_data) for same_data in split_by(others, DATA)]
        recipe = {name: flags_of(same_recipe)[name] for name in RECIPE}
        found.append({"recipe": recipe, "is_the_papers": recipe == recipe | published["recipe"], "tables": tables,
                      "differences": tables_of_differences(same_recipe), "attention": attention_tables(same_recipe)})
    return found


def paper_table(name: str, layout: dict, runs: pd.DataFrame, usual: dict) -> dict:
    """A table of published.json, its cells filled from the runs.

    usual: the flags of the paper's methods. The ``usual`` of a table or a column replaces them.
    """
    rows = []
    for row in layout["rows"]:
        cells = []
        for column, published in zip(layout["columns"], row["published"], strict=True):
            wanted = {"num_branches": 4, **layout["where"], **row, **column}
            wanted = {flag: value for flag, value in wanted.items()
                      if flag not in ("name", "published", "others", "measured", "usual")}
            matching = runs[[matches(flags, wanted) for flags in runs["flags"]]]
            cells.append(cell(matching, published, ensemble=column.get("measured") == "ensemble"))
            for group in cells[-1]["groups"]:
                flags = group["flags"]
                expected = usual | usual_dropout(flags) | layout.get("usual", {}) | column.get("usual", {})
                group["unusual"] = [flag for flag, value in expected.items() if flags.get(flag, value) != value]
        rows.append({"name": row["name"], "cells": cells, "others": row.get("others", [])})
    return {"name": name, "title": layout["title"], "note": layout.get("note", ""),
            "source": layout.get("source", "paper"), "columns": [column["name"] for column in layout["columns"]],
            "rows": rows}


def matches(flags: dict, wanted: dict) -> bool:
    """Whether the flags have these values. Tables show single networks beside groups of four students."""
    flags = {"num_branches": 4} | flags
    return all(flags.get(name) == value for name, value in wanted.items())


def usual_dropout(flags: dict) -> dict[str, float]:
    """The dropout of the authors' code: 0.5 in the branches of a VGG, none elsewhere."""
    branches = flags.get("MulStu") is False
    return {"dropout": 0.5 if branches and flags["model"].startswith("vgg") else 0.0}


def other_table(runs: pd.DataFrame) -> dict:
    """A table of runs on one data set that no table of the paper shows."""
    names = runs["model"].map(network_title) + [f", {m} students" if m != 4 else "" for m in runs["num_branches"]]
    methods = sorted(set(runs["method"]), key=position)
    rows = [{"name": name, "others": [], "cells": [
        cell(runs[(names == name) & (runs["method"] == method)], None) for method in methods]}
        for name in sorted(set(names), key=natural_order)]
    return {"name": "", "title": data_title(flags_of(runs)), "note": "", "source": "",
            "columns": [title_of(method) for method in methods], "rows": rows}


def attention_tables(runs: pd.DataFrame) -> list[dict]:
    """How much peers attend to themselves: mean alpha_aa in some epochs, a table for each network and data set."""
    tables = []
    for same_network in split_by(runs, (*DATA, "model")):
        groups = [group for group in sorted(split(same_network), key=lambda group: position(group["method"].iloc[0]))
                  if all("attention_self" in history[0] for history in group["history"])]
        if not groups:
            continue
        flags = flags_of(groups[0])
        epochs = sorted({max(1, round(share * flags["num_epochs"])) for share in (0, 1/8, 1/4, 1/2, 3/4, 1)})
        lines = [{"name": label + (f", {m} students" if (m := group["num_branches"].iloc[0]) != 4 else ""),
                  "seeds": group["seed"].tolist(),
                  "means": [mean_and_deviation(pd.Series([history[e - 1]["attention_self"]
                                                          for history in group["history"]])) for e in epochs]}
                 for group, label in zip(groups, labels_of(groups), strict=True)]
        tables.append({"network": network_title(flags["model"]), "data": data_title(flags), "epochs": epochs,
                       "lines": lines})
    return tables


def natural_order(name: str) -> list[str | int]:
    """A sort key that puts ResNet-8 before ResNet-20."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def cell(runs: pd.DataFrame, published: list | None, ensemble: bool = False) -> dict:
    """The content of one table cell. ensemble: report the ensemble, not the method's own output."""
    best, epoch, last = ("ensemble_best", "ensemble_best_epoch", "ensemble") if ensemble else (
        "best", "best_epoch", "last")
    return {"published": published, "groups": [{
        "n": len(group), "seeds": group["seed"].tolist(), "flags": flags_of(group),
        "best_epochs": group[epoch].tolist(), "best": mean_and_deviation(group[best]),
        "last": mean_and_deviation(group[last]),
        "besides": {name: mean_and_deviation(group[column]) for name, column in COLUMNS.items()
                    if column in group and group[column].notna().all()},
        "students_by_name": {name: mean_and_deviation(group["students_by_name"].map(lambda errors, n=name: errors[n]))
                             for name in group["students_by_name"].iloc[0]},
        "difference": mean_and_deviation(group[best])[0] - published[0] if published else None,
        "command": f"python {group['command'].iloc[0]}", "runs": group["folder"].tolist()}
        for group in split(runs)]}
