"""Tables and figures of many finished runs, in the paper's layout, beside what was published.

    python report.py runs/paper                          # Markdown
    python report.py runs/paper --html report.html       # the same and all figures in one page

Runs are grouped by everything but the seed; a cell is the mean of a group's top-1 errors +- their standard deviation
(n - 1 in the denominator), with the number of seeds. The published values are in results/published.json.
"""

import argparse
import csv
import io
import json
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import utils
from errors import UserError
from run import FREE_FLAGS

PUBLISHED = Path(__file__).with_name("results") / "published.json"
# What may differ within a group: the seed, where a run is and how it was started, and what follows from the rest.
WITHIN = (FREE_FLAGS - {"num_epochs"}) | {"seed", "command", "environment", "starts", "weights", "schedule"}
DATA = ("dataset", "classes", "mean", "std")
RECIPE = ("num_epochs", "batch_size", "lr", "milestones", "wd", "val_size", "amp", "compile", "tf32", "sync_bn")
CELL = ("model", "method", "num_branches")
BESIDES = {"stu_": "leader", "mean_": "mean of the students or peers", "": "ensemble", "gate_": "gated ensemble",
           "dist": "diversity"}
METHODS = {"baseline": "Baseline", "KD": "KD", "Ind": "Ind", "DML": "DML", "CL-ILR": "CL-ILR", "ONE": "ONE",
           "OKDDip-N": "OKDDip-N", "OKDDip": "OKDDip-B"}
NETWORKS = {"densenetd40k12": "DenseNet-40-12", "densenetd100k12": "DenseNet-100-12", "wide_resnet20_8": "WRN-20-8"}


# --- runs -------------------------------------------------------------------------------------------------------------


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
        return all(self.flags.get(name, 4 if name == "num_branches" else None) == value
                   for name, value in wanted.items())


def read_run(folder: Path) -> Recorded:
    """UserError where the folder holds no run, or one that is not over."""
    try:
        flags = json.loads((folder / "parameters.json").read_text())
        history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        needed = [flags[name] for name in (*DATA, *RECIPE, "model", "method", "seed")]
        epochs = [record["epoch"] for record in history]
    except FileNotFoundError as error:
        raise UserError(f"{folder} is left out: it has no {Path(error.filename).name}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is left out: its records are not a run's of this project "
                        f"({type(error).__name__}: {error})") from error
    planned = flags["num_epochs"]
    if epochs != list(range(1, len(epochs) + 1)) or len(epochs) < planned or not needed:
        raise UserError(f"{folder} is left out: it has {len(epochs)} of {planned} epochs, --resume continues it")
    run = Recorded(folder, flags, history)
    try:
        for epoch in ("best", "last"):
            run.error(epoch, run.measured)
    except (LookupError, StopIteration, TypeError) as error:
        raise UserError(f"{folder} is left out: its figures have no top-1 accuracy in every epoch") from error
    return run


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
    """By everything but the seed; -> the groups, and a sentence about every seed that stands alone or comes twice."""
    found: dict[str, Group] = {}
    notes = []
    for run in runs:
        flags = {name: value for name, value in run.flags.items() if name not in WITHIN}
        members = found.setdefault(json.dumps(flags, sort_keys=True), Group(flags, [])).runs
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


# --- tables -----------------------------------------------------------------------------------------------------------


def mean_and_deviation(values: list[float]) -> list[float | None]:
    return [statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None]


def cell(groups: list[Group], measured: str | None, published: list | None) -> dict:
    """What a table says of a network and a method. measured: "ensemble", or None for the method's own figure."""
    results = []
    for g in groups:
        row = "" if measured == "ensemble" else g.runs[0].measured
        best, last = ([run.error(epoch, row) for run in g.runs] for epoch in ("best", "last"))
        errors = {"best": [e for e, _ in best], "last": [e for e, _ in last]}
        results.append({
            "n": len(g.runs), "seeds": g.seeds, "flags": g.flags, "best_epochs": [epoch for _, epoch in best],
            **{name: mean_and_deviation(values) for name, values in errors.items()}, "besides": besides(g),
            "difference": statistics.fmean(errors["best"]) - published[0] if published else None,
            "command": f"python {g.runs[0].flags['command']}", "runs": [str(run.folder) for run in g.runs]})
    return {"published": published, "groups": results}


def besides(g: Group) -> dict[str, list]:
    """Everything that the last epoch measured of a group: error of each of its rows, and diversity."""
    last = [run.history[-1] for run in g.runs]
    errors = {row: [100 - record[f"{row}test_accTop1"] for record in last]
              for row in BESIDES if f"{row}test_accTop1" in last[0]}
    diversity = {"dist": [record["dist"] for record in last]} if "dist" in last[0] else {}
    return {name: mean_and_deviation(values) for name, values in (errors | diversity).items()}


def paper_table(name: str, layout: dict, groups: list[Group]) -> dict:
    """One of published.json's tables, its cells filled from ``groups``."""
    rows = []
    for row in layout["rows"]:
        cells = []
        for column, published in zip(layout["columns"], row["published"], strict=True):
            wanted = {"num_branches": 4, **layout["where"], **without(row, "name", "published", "others"),
                      **without(column, "name", "measured")}
            found = [g for g in groups if g.matches(wanted)]
            cells.append(cell(found, column.get("measured"), published))
        rows.append({"name": row["name"], "cells": cells, "others": row.get("others", [])})
    return {"name": name, "title": layout["title"], "note": layout.get("note", ""),
            "columns": [column["name"] for column in layout["columns"]], "rows": rows}


def without(mapping: dict, *names: str) -> dict:
    return {name: value for name, value in mapping.items() if name not in names}


def other_table(groups: list[Group]) -> dict:
    """Networks and methods of one data set that no table of the paper has."""
    def row_name(g: Group) -> str:
        size = g.flags.get("num_branches", 4)
        return title_of(g.flags["model"]) + (f", {size} students" if size != 4 else "")

    also = sorted({g.flags["method"] for g in groups} - METHODS.keys())
    columns = {method: METHODS.get(method, method) for method in (*METHODS, *also)}
    names = sorted({row_name(g) for g in groups}, key=lambda name: [int(n) if n.isdigit() else n
                                                                    for n in name.replace(",", "-").split("-")])
    rows = [{"name": name, "others": [], "cells": [
        cell([g for g in groups if row_name(g) == name and g.flags["method"] == method], None, None)
        for method in columns]} for name in names]
    flags = groups[0].flags
    return {"name": "", "title": f"{flags['dataset']} ({len(flags['classes'])} classes)", "note": "",
            "columns": list(columns.values()), "rows": rows}


def title_of(model: str) -> str:
    return NETWORKS.get(model) or model.replace("resnet", "ResNet-").replace("vgg", "VGG-")


def by(groups: Iterable[Group], names: Iterable[str]) -> Iterator[list[Group]]:
    """The groups that agree in these flags, together."""
    together: dict[str, list[Group]] = {}
    for g in groups:
        together.setdefault(json.dumps([g.flags[name] for name in names]), []).append(g)
    yield from together.values()


def sections(groups: list[Group], published: dict) -> list[dict]:
    """A section for each recipe; in it, each table of the paper that shows a group which those before it do not show,
    and tables of what is left."""
    found = []
    for same_recipe in by(groups, RECIPE):
        tables, shown = [], set()
        for name, layout in published["tables"].items():
            table = paper_table(name, layout, same_recipe)
            runs = runs_of(table)
            if not runs <= shown:
                tables.append(table)
                shown |= runs
        rest = [g for g in same_recipe if not {str(run.folder) for run in g.runs} <= shown]
        tables += [other_table(same_data) for same_data in by(rest, DATA)]
        recipe = {name: same_recipe[0].flags[name] for name in RECIPE}
        usual = all(recipe[name] == value for name, value in published["recipe"].items())
        found.append({"recipe": recipe, "is_the_papers": usual, "tables": tables})
    return found


def runs_of(table: dict) -> set[str]:
    return {run for row in table["rows"] for c in row["cells"] for g in c["groups"] for run in g["runs"]}


# --- output -----------------------------------------------------------------------------------------------------------

Block = tuple[str, object]  # ("h1" to "h3", text), ("text", text), ("code", lines) or ("table", rows of cells)
ABOUT = """Mean ± standard deviation over seeds (their number). The figure is the leader's for OKDDip and the mean of
the students for other groups, unless a title says otherwise. The best epoch is the best of that figure, on the test
images unless images were held out; the last epoch chooses nothing. Difference: best epoch minus paper. Paper:
{source}."""
NOT_THE_PAPERS = """This is not the recipe of the published CIFAR figures, so differences to them measure the recipe as
well as the code."""


def number(mean: float, deviation: float | None, n: int | None = None, digits: int = 2) -> str:
    text = f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation is not None else "")
    return text if n is None else f"{text} ({n})"


def blocks(report: list[dict], source: str) -> list[Block]:
    """The report as headings, sentences and tables, for Markdown and HTML."""
    out: list[Block] = [("h1", "Top-1 error, %"), ("text", ABOUT.format(source=source))]
    for section in report:
        out.append(("h2", recipe_in_words(section["recipe"])))
        if not section["is_the_papers"] and any(table["name"] for table in section["tables"]):
            out.append(("text", NOT_THE_PAPERS))
        for table in section["tables"]:
            out += table_blocks(table)
    return out


def recipe_in_words(recipe: dict) -> str:
    steps = " and ".join(map(str, recipe["milestones"]))
    words = [f"{recipe['num_epochs']} epoch{'s' * (recipe['num_epochs'] > 1)}", f"batches of {recipe['batch_size']}",
             f"learning rate {recipe['lr']:g}, a tenth from epochs {steps} on", f"weight decay {recipe['wd']:g}"]
    if recipe["val_size"]:
        words.append(f"best epoch chosen on {recipe['val_size']} held-out training images")
    words += [f"--{name}" for name in ("compile", "tf32", "sync_bn") if recipe[name]]
    words += [f"--amp {recipe['amp']}"] if recipe["amp"] != "off" else []
    return "; ".join(words)


def table_blocks(table: dict) -> list[Block]:
    rows = [["", "", *table["columns"]]]
    commands, besides = [], []
    for row in table["rows"]:
        cells = row["cells"]
        lines = {"best epoch": [groups_in_words(c, "best") for c in cells],
                 "last epoch": [groups_in_words(c, "last") for c in cells]}
        if table["name"]:
            lines["paper"] = [number(*c["published"]) if c["published"] else "–" for c in cells]
            lines["difference"] = ["<br>".join(f"{g['difference']:+.2f}" for g in c["groups"]
                                               if g["difference"] is not None) or "–" for c in cells]
        for other in row["others"]:
            lines[other["source"]] = [number(*value) if value else "–" for value in other["published"]]
        rows += [[row["name"] if i == 0 else "", name, *texts] for i, (name, texts) in enumerate(lines.items())]
        for column, c in zip(table["columns"], cells, strict=True):
            commands += [f"{g['command']}  # {seeds_in_words(g)}" for g in c["groups"]]
            besides += [[row["name"], column, *besides_in_words(g)] for g in c["groups"] if "dist" in g["besides"]]
    title = table["title"] + (f" ({table['note']})" if table["note"] else "")
    out = [("h3", title), ("table", rows)]
    if besides:
        out += [("text", "Groups, last epoch: error of the ensemble and others, and the diversity of the peers."),
                ("table", [["", "", *BESIDES.values()], *besides])]
    return [*out, ("text", "The first seed's commands:"), ("code", commands)]


def besides_in_words(g: dict) -> list[str]:
    return [number(*g["besides"][name], digits=3 if name == "dist" else 2) if name in g["besides"] else "–"
            for name in BESIDES]


def groups_in_words(c: dict, epoch: str) -> str:
    """A cell's line: usually one number; several, with the flags that tell them apart, where flags differ."""
    if not c["groups"]:
        return "not run"
    several = len(c["groups"]) > 1
    return "<br>".join(number(*g[epoch], g["n"]) + (f" [{difference(g, c['groups'])}]" if several else "")
                       for g in c["groups"])


def difference(g: dict, groups: list[dict]) -> str:
    """The flags in which one of a cell's groups differs from another."""
    names = {name for other in groups for name in (*g["flags"], *other["flags"])
             if g["flags"].get(name) != other["flags"].get(name)}
    return ", ".join(f"{name} {g['flags'].get(name)}" for name in sorted(names))


def seeds_in_words(g: dict) -> str:
    seeds, epochs = (" ".join(map(str, g[name])) for name in ("seeds", "best_epochs"))
    return f"seeds {seeds}; best epochs {epochs}"


def markdown(content: list[Block]) -> str:
    out = []
    for kind, value in content:
        if kind.startswith("h"):
            out.append(f"{'#' * int(kind[1])} {value}")
        elif kind == "text":
            out.append(value)
        elif kind == "code":
            out.append("\n".join(["```sh", *value, "```"]))
        else:
            header, *rows = value
            ruler = ["---", "---", *["---:"] * (len(header) - 2)]
            out.append("\n".join("| " + " | ".join(line) + " |" for line in (header, ruler, *rows)))
    return "\n\n".join(out) + "\n"


def as_csv(report: list[dict]) -> str:
    """A line for each group in each table, and for each published value without one."""
    file = io.StringIO()
    columns = ["recipe", "table", "row", "column", "n", "seeds", "best_mean", "best_sd", "best_epochs", "last_mean",
               "last_sd", "published", "published_sd", "difference", "command"]
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    for section in report:
        for table in section["tables"]:
            for row in table["rows"]:
                for name, c in zip(table["columns"], row["cells"], strict=True):
                    place = {"recipe": recipe_in_words(section["recipe"]), "table": table["name"] or table["title"],
                             "row": row["name"], "column": name}
                    place["published"], place["published_sd"] = c["published"] or (None, None)
                    for g in c["groups"] or [{"n": 0}]:
                        writer.writerow(place | flat(g))
    return file.getvalue()


def flat(g: dict) -> dict:
    if not g["n"]:
        return g
    lists = {name: " ".join(map(str, g[name])) for name in ("seeds", "best_epochs")}
    (best, best_sd), (last, last_sd) = g["best"], g["last"]
    return {"n": g["n"], "best_mean": best, "best_sd": best_sd, "last_mean": last, "last_sd": last_sd,
            "difference": g["difference"], "command": g["command"], **lists}


# --- the way in -------------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    p = utils.Parser(description=__doc__.partition("\n")[0])
    p.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, or folders that they are in")
    g = p.add_mutually_exclusive_group()
    g.add_argument("--csv", action="store_true", help="print a line for each group instead of tables")
    g.add_argument("--json", action="store_true", help="print everything that is known instead of tables")
    p.add_argument("--html", type=Path, metavar="FILE", help="also write tables and figures into one page")
    p.add_argument("--figures", type=Path, metavar="FOLDER", help="also write the figures, as PNG")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    runs, notes = find_runs(args.runs)
    groups, more_notes = group(runs)
    for note in notes + more_notes:
        utils.warn(note)
    if not groups:
        raise UserError(f"no finished run in {', '.join(map(str, args.runs))}: train one, or name another folder")
    published = json.loads(PUBLISHED.read_text())
    report = sections(groups, published)
    content = blocks(report, published["source"])
    if args.html or args.figures:
        import figures

        pictures = figures.draw_all(groups)
        if args.figures:
            figures.write(pictures, args.figures)
        if args.html:
            figures.write_page(content, pictures, args.html)
    if args.json:
        text = json.dumps({"sections": report, "notes": notes + more_notes}, indent=2) + "\n"
    else:
        text = as_csv(report) if args.csv else markdown(content)
    sys.stdout.write(text)


if __name__ == "__main__":
    utils.command(main)
