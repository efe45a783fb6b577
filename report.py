"""Tables and figures of many finished runs, in the paper's layout, beside what was published.

    python report.py runs/paper                          # Markdown
    python report.py runs/paper --html report.html       # the same and all figures in one page

Runs are grouped by everything but the seed; a cell is the mean of a group's top-1 errors +- their standard deviation
(n - 1 in the denominator), with the number of seeds. The published values are in results/published.json.
"""

import argparse
import base64
import csv
import io
import json
import re
import statistics
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path

from checkpoint import save
from errors import UserError
from records import DATA, METHODS, RECIPE, Group, by, find_runs, group, recipe_in_words, title_of

import utils

PUBLISHED = Path(__file__).with_name("results") / "published.json"
BESIDES = {"stu_": "leader", "mean_": "mean of the students or peers", "": "ensemble", "gate_": "gated ensemble",
           "dist": "diversity"}


# --- tables -----------------------------------------------------------------------------------------------------------


def mean_and_deviation(values: list[float]) -> list[float | None]:
    """-> the mean, and the standard deviation over n - 1 where there are two or more."""
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


def paper_table(name: str, layout: dict, groups: list[Group], usual: dict) -> dict:
    """One of published.json's tables, its cells filled from ``groups``. usual: the method's flags behind it."""
    rows = []
    for row in layout["rows"]:
        cells = []
        for column, published in zip(layout["columns"], row["published"], strict=True):
            wanted = {"num_branches": 4, **layout["where"], **without(row, "name", "published", "others"),
                      **without(column, "name", "measured")}
            found = [g for g in groups if g.matches(wanted)]
            cells.append(cell(found, column.get("measured"), published))
            for g in cells[-1]["groups"]:
                g["unusual"] = [flag for flag, value in (usual | usual_dropout(g["flags"])).items()
                                if g["flags"].get(flag, value) != value]
        rows.append({"name": row["name"], "cells": cells, "others": row.get("others", [])})
    return {"name": name, "title": layout["title"], "note": layout.get("note", ""),
            "columns": [column["name"] for column in layout["columns"]], "rows": rows}


def usual_dropout(flags: dict) -> dict[str, float]:
    """What the authors' code has built in: dropout in the branches of a VGG."""
    branches = flags["method"].startswith(("Ind", "CL", "ONE", "OKDDip")) and flags["method"] != "OKDDip-N"
    return {"dropout": 0.5 if branches and flags["model"].startswith("vgg") else 0.0}


def without(mapping: dict, *names: str) -> dict:
    """The mapping but for these names."""
    return {name: value for name, value in mapping.items() if name not in names}


def other_table(groups: list[Group]) -> dict:
    """Networks and methods of one data set that no table of the paper has."""
    def row_name(g: Group) -> str:
        size = g.flags.get("num_branches", 4)
        return title_of(g.flags["model"]) + (f", {size} students" if size != 4 else "")

    also = sorted({g.flags["method"] for g in groups} - METHODS.keys())
    columns = {method: METHODS.get(method, method) for method in (*METHODS, *also)}
    names = sorted({row_name(g) for g in groups}, key=by_number)
    rows = [{"name": name, "others": [], "cells": [
        cell([g for g in groups if row_name(g) == name and g.flags["method"] == method], None, None)
        for method in columns]} for name in names]
    flags = groups[0].flags
    return {"name": "", "title": f"{flags['dataset']} ({len(flags['classes'])} classes)", "note": "",
            "columns": list(columns.values()), "rows": rows}


def by_number(name: str) -> list[str | int]:
    """A key that puts ResNet-8 before ResNet-20."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def sections(groups: list[Group], published: dict) -> list[dict]:
    """A section for each recipe; in it, each table of the paper that shows a group which those before it do not show,
    and tables of what is left."""
    found = []
    for same_recipe in by(groups, RECIPE):
        tables, shown = [], set()
        for name, layout in published["tables"].items():
            table = paper_table(name, layout, same_recipe, published["method"])
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
    """The folders of all runs in a table."""
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
    """"mean ± deviation (n)", what is None left out."""
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


def table_blocks(table: dict) -> list[Block]:
    """A table: its cells by row and line, what groups measured besides, and the commands."""
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
    """The cells of BESIDES."""
    return [number(*g["besides"][name], digits=3 if name == "dist" else 2) if name in g["besides"] else "–"
            for name in BESIDES]


def groups_in_words(c: dict, epoch: str) -> str:
    """A cell's line: a number for each group, with the flags that tell it from another or from the paper's."""
    return "<br>".join(number(*g[epoch], g["n"]) + flags_in_words(g, c["groups"]) for g in c["groups"]) or "not run"


def flags_in_words(g: dict, groups: list[dict]) -> str:
    """The flags in which one of a cell's groups differs from another, or from what the paper's methods have."""
    names = {name for other in groups for name in (*g["flags"], *other["flags"])
             if g["flags"].get(name) != other["flags"].get(name)}.union(g.get("unusual", []))
    words = ", ".join(f"{name} {g['flags'].get(name)}" for name in sorted(names))
    return words and f" [{words}]"


def seeds_in_words(g: dict) -> str:
    """A group's seeds and the best epoch of each."""
    seeds, epochs = (" ".join(map(str, g[name])) for name in ("seeds", "best_epochs"))
    return f"seeds {seeds}; best epochs {epochs}"


def markdown(content: list[Block]) -> str:
    """The blocks as Markdown."""
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
            out.append("\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |"
                                 for line in (header, ruler, *rows)))
    return "\n\n".join(out) + "\n"


STYLE = """body { font: 15px/1.5 sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #111; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
td, th { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd; }
td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left; }
pre { overflow-x: auto; background: #f5f5f5; padding: .7em; font-size: 12px; }
img { max-width: 100%; } figure { margin: 2em 0; } figcaption { font-size: 13px; }
.wide { overflow-x: auto; }"""


def html(content: list[Block], pictures: Mapping[str, tuple[str, bytes]]) -> str:
    """Tables and pictures in one file that needs no other."""
    parts = ['<!doctype html><html lang="en"><meta charset="utf-8"><title>OKDDip: report</title>',
             f"<style>{STYLE}</style>", *map(element, content), "<h2>Figures</h2>"]
    for caption, image in pictures.values():
        caption, encoded = escape(caption), base64.b64encode(image).decode()
        parts.append(f'<figure><img alt="{caption}" src="data:image/png;base64,{encoded}">'
                     f"<figcaption>{caption}</figcaption></figure>")
    return "\n".join([*parts, "</html>\n"])


def element(block: Block) -> str:
    """A block as HTML."""
    kind, value = block
    if kind == "code":
        return f"<pre>{escape(chr(10).join(value))}</pre>"
    if kind != "table":
        kind = "p" if kind == "text" else kind
        return f"<{kind}>{escape(value)}</{kind}>"
    lines = ["".join(f"<{tag}>{cell_text(text)}</{tag}>" for text in line)
             for tag, line in zip(["th"] + ["td"] * len(value), value, strict=False)]
    return f'<div class="wide"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def cell_text(text: str) -> str:
    """A cell as HTML; ``<br>`` stays a line break."""
    return escape(text).replace("&lt;br&gt;", "<br>")


CSV_PAIRS = {"stu_": "leader", "mean_": "students", "": "ensemble", "gate_": "gated_ensemble", "dist": "diversity"}


def as_csv(report: list[dict]) -> str:
    """A line for each group in each table, and for each published value without one. The figures of CSV_PAIRS are those
    of groups in the last epoch."""
    file = io.StringIO()
    pairs = [f"{name}_{what}" for name in ("best", "last", "published", *CSV_PAIRS.values()) for what in ("mean", "sd")]
    writer = csv.DictWriter(file, ["recipe", "table", "row", "column", "telling_flags", "n", "seeds", "best_epochs",
                                   *pairs, "difference", "command"], lineterminator="\n")
    writer.writeheader()
    for section in report:
        for table in section["tables"]:
            for row in table["rows"]:
                for name, c in zip(table["columns"], row["cells"], strict=True):
                    place = {"recipe": recipe_in_words(section["recipe"]), "table": table["name"] or table["title"],
                             "row": row["name"], "column": name}
                    place["published_mean"], place["published_sd"] = c["published"] or (None, None)
                    for g in c["groups"]:
                        writer.writerow(place | flat(g, c["groups"]))
                    if not c["groups"]:
                        writer.writerow(place | {"n": 0})
    return file.getvalue()


def flat(g: dict, groups: list[dict]) -> dict:
    """One of a cell's groups as cells of a CSV line."""
    lists = {name: " ".join(map(str, g[name])) for name in ("seeds", "best_epochs")}
    pairs = {"best": g["best"], "last": g["last"]}
    if "dist" in g["besides"]:
        pairs |= {CSV_PAIRS[name]: pair for name, pair in g["besides"].items()}
    figures = {f"{name}_{what}": value for name, pair in pairs.items()
               for what, value in zip(("mean", "sd"), pair, strict=True)}
    return {"telling_flags": flags_in_words(g, groups).strip(" []"), "n": g["n"], **lists, **figures,
            "difference": g["difference"], "command": g["command"]}


# --- the way in -------------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The flags; exit code 2 with one line where they are wrong."""
    p = utils.Parser(__doc__, "RUNS ...")
    p.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, or folders that they are in")
    g = p.add_mutually_exclusive_group()
    g.add_argument("--csv", action="store_true", help="print a line for each group instead of tables")
    g.add_argument("--json", action="store_true", help="print everything that is known instead of tables")
    p.add_argument("--html", type=Path, metavar="FILE", help="also write tables and figures into one page")
    p.add_argument("--figures", type=Path, metavar="FOLDER", help="also write the figures, as PNG")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Print the report and write its files; UserError where there is no run."""
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
            args.figures.mkdir(parents=True, exist_ok=True)
            save({args.figures / f"{name}.png": image for name, (_, image) in pictures.items()})
        if args.html:
            args.html.parent.mkdir(parents=True, exist_ok=True)
            save({args.html: html(content, pictures).encode()})
    if args.json:
        text = json.dumps({"sections": report, "notes": notes + more_notes}, indent=2) + "\n"
    else:
        text = as_csv(report) if args.csv else markdown(content)
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # the same bytes on every machine
    sys.stdout.write(text)


if __name__ == "__main__":
    utils.command(main)
