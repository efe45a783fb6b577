"""The report: what its tables hold, and how they look as Markdown, as a page with figures (HTML) and as CSV.

``sections`` puts the runs into the layout of the paper's tables (results/published.json), and other runs into tables of
their own. report.py --json prints the sections. The other forms are made from them.
"""

import base64
import re
from collections.abc import Mapping
from pathlib import Path

import jinja2
import pandas as pd

from analysis import records
from analysis.comparisons import MEASURES, tables_of_differences
from analysis.records import COLUMNS, DATA, RECIPE, flags_of, mean_and_deviation, size_of, split, split_by
from analysis.records import OTHER_RECIPE as OTHER_FLAGS
from methods import position, title_of
from training.outputs import LEADER, MEAN

PUBLISHED = Path(__file__).parent.parent / "results" / "published.json"
TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                               trim_blocks=True, lstrip_blocks=True)
HEADINGS = {name: column.replace("_", " ") for name, column in COLUMNS.items()} | {
    LEADER: "leader or deployed network", MEAN: "mean of the students or peers"}
ABOUT = """Each cell shows the mean ± standard deviation over seeds, and the number of seeds in brackets. If a group of
students has a leader, the error is the leader's. For PCL it is that of mean peer 0, for OKDPH that of the hybrid. For
other groups it is the mean of the students' errors. If a table shows other errors, its title says so. The best epoch
has the lowest error on the test images, or on the held-out images if images were held out. The last epoch is shown,
too: no images choose it. Difference: best epoch minus paper. Paper: {source}."""
OTHER_RECIPE = """This is not the recipe of the published CIFAR numbers, so differences to them measure the recipe as
well as the code."""
ABOUT_DIFFERENCES = """Difference: the value of a method minus that of the reference. Differences of errors are in
percentage points. Below 0, the method has the lower value. Differences are paired by seed, over the seeds that both
have. Interval: 95 % confidence interval of the mean difference (Student's t). p: two-sided paired t-test. p, Holm: p
after Holm's correction, for which all tests of one table are a family. If the interval holds 0, no difference is
shown."""
ABOUT_ATTENTION = """The weight of a peer for itself (alpha_aa), averaged over the peers and the test images: mean ±
standard deviation over seeds. If it is 1, the target of a peer is its own output."""

Block = tuple[str, str | pd.DataFrame]  # an HTML element's name (h1, h2, h3, p, pre, table), and its content


# --- content ----------------------------------------------------------------------------------------------------------


def sections(runs: pd.DataFrame, published: dict) -> list[dict]:
    """A section for each recipe. published: the content of results/published.json.

    A section has only those tables of the paper that contain at least one run which is not in an earlier table. Other
    runs follow in a table for each data set.
    """
    found = []
    for same_recipe in split_by(runs, (*RECIPE, *OTHER_FLAGS)):
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
        flags = flags_of(same_recipe)
        recipe = {name: flags[name] for name in RECIPE}
        recipe |= {name: flags[name] for name, usual in OTHER_FLAGS.items() if flags[name] != usual}
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
            wanted = {flag: value for flag, value in {"num_branches": 4, **layout["where"], **row, **column}.items()
                      if flag not in ("name", "published", "others", "measured", "usual")}
            matching = runs[[all(({"num_branches": 4} | flags).get(flag) == value for flag, value in wanted.items())
                             for flags in runs["flags"]]]
            cells.append(cell(matching, published, "ensemble_" if column.get("measured") == "ensemble" else ""))
            for group in cells[-1]["groups"]:
                flags = group["flags"]
                branch_of_vgg = flags.get("MulStu") is False and flags["model"].startswith("vgg")
                dropout = {"dropout": 0.5 if branch_of_vgg else 0.0}  # as in the authors' code
                expected = usual | dropout | layout.get("usual", {}) | column.get("usual", {})
                group["unusual"] = [flag for flag, value in expected.items() if flags.get(flag, value) != value]
        rows.append({"name": row["name"], "cells": cells, "others": row.get("others", [])})
    return {"name": name, "title": layout["title"], "note": layout.get("note", ""),
            "source": layout.get("source", "paper"), "columns": [column["name"] for column in layout["columns"]],
            "rows": rows}


def other_table(runs: pd.DataFrame) -> dict:
    """A table of runs on one data set that no table of the paper shows."""
    def with_numbers(name: str) -> list[str | int]:  # sorts ResNet-8 before ResNet-20
        return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]

    names = pd.Series([*map(records.network_title, runs["model"], runs["num_branches"])], runs.index)
    methods = sorted(set(runs["method"]), key=position)
    rows = [{"name": name, "others": [], "cells": [
        cell(runs[(names == name) & (runs["method"] == method)], None) for method in methods]}
        for name in sorted(set(names), key=with_numbers)]
    return {"name": "", "title": records.data_title(flags_of(runs)), "note": "", "source": "",
            "columns": [title_of(method) for method in methods], "rows": rows}


def cell(runs: pd.DataFrame, published: list | None, measured: str = "") -> dict:
    """The content of one table cell. measured: "ensemble_" reports the ensemble, not the method's own output."""
    return {"published": published, "groups": [{
        "n": len(group), "seeds": group["seed"].tolist(), "flags": flags_of(group),
        "best_epochs": group[f"{measured}best_epoch"].tolist(),
        "best": (best := mean_and_deviation(group[f"{measured}best"])),
        "last": mean_and_deviation(group[f"{measured}last"]),
        "besides": {name: mean_and_deviation(group[column]) for name, column in COLUMNS.items()
                    if column in group and group[column].notna().all()},
        "students_by_name": {name: mean_and_deviation(group["students_by_name"].map(lambda errors, n=name: errors[n]))
                             for name in group["students_by_name"].iloc[0]},
        "difference": best[0] - published[0] if published else None,
        "command": f"python {group['command'].iloc[0]}", "runs": group["folder"].tolist()}
        for group in split(runs)]}


def attention_tables(runs: pd.DataFrame) -> list[dict]:
    """How much peers attend to themselves: mean alpha_aa in some epochs, a table for each network and data set."""
    tables = []
    for same_network in split_by(runs, (*DATA, "model")):
        groups = [group for group in split(same_network)
                  if all("attention_self" in history[0] for history in group["history"])]
        flags, lines = flags_of(same_network), []
        epochs = sorted({max(1, round(share * flags["num_epochs"])) for share in (0, 1/8, 1/4, 1/2, 3/4, 1)})
        for group, label in zip(groups, records.labels_of(groups), strict=True):
            weights = [pd.Series([history[e - 1]["attention_self"] for history in group["history"]]) for e in epochs]
            lines.append({"name": label + records.with_students(size_of(group)), "seeds": group["seed"].tolist(),
                          "means": [*map(mean_and_deviation, weights)]})
        tables += [{"network": records.network_title(flags["model"]), "data": records.data_title(flags),
                    "epochs": epochs, "lines": lines}] if lines else []
    return tables


# --- Markdown and HTML ------------------------------------------------------------------------------------------------


def blocks(report: list[dict], source: str) -> list[Block]:
    """The content, used for both Markdown and HTML. report: from ``sections``. source: the paper."""
    content: list[Block] = [("h1", "Top-1 error, %"), ("p", ABOUT.format(source=source))]
    for section in report:
        content.append(("h2", records.recipe_title(section["recipe"])))
        if not section["is_the_papers"] and any(table["name"] for table in section["tables"]):
            content.append(("p", OTHER_RECIPE))
        for table in section["tables"]:
            content += table_blocks(table)
        for measure in MEASURES:
            compared = [table for table in section["differences"] if table["measure"] == measure]
            if compared:
                content += [("h3", f"Differences of the last epoch's {measure}")]
                content += [("p", ABOUT_DIFFERENCES)] if measure == "error" else []
                content += [block for table in compared for block in difference_blocks(table)]
        if section["attention"]:
            content += [("h3", "Attention of the peers to themselves"), ("p", ABOUT_ATTENTION)]
            content += [block for table in section["attention"] for block in attention_blocks(table)]
    return content


def table_blocks(table: dict) -> list[Block]:
    """A table, a second table with other metrics of the groups, and the commands."""
    lines, measured, by_name, commands = [], [], [], []
    for row in table["rows"]:
        for i, (name, texts) in enumerate(lines_of(row, table["source"]).items()):
            lines.append([row["name"] if i == 0 else "", name, *texts])
        for column, cell in zip(table["columns"], row["cells"], strict=True):
            for group in cell["groups"]:
                commands.append(f"{group['command']}  # seeds {spaced(group['seeds'])}; "
                                f"best epochs {spaced(group['best_epochs'])}")
                if "dist" in group["besides"]:
                    measured.append((row["name"], column, group["besides"]))
                flags = distinguishing_flags(group, cell["groups"])
                by_name += [[f"{row['name']}, {column}{flags and f' [{flags}]'}", name, number(error)]
                            for name, error in group["students_by_name"].items()]
    content = [("h3", table["title"] + (f" ({table['note']})" if table["note"] else "")),
               ("table", pd.DataFrame(lines, columns=["", "", *table["columns"]]))]
    if measured:
        shown = [name for name in HEADINGS if any(name in besides for *_, besides in measured)]
        rows = [[name, column, *(number(besides.get(key), digits=3 if key == "dist" else 2) for key in shown)]
                for name, column, besides in measured]
        content += [("p", "Groups of students in the last epoch: errors of their outputs, diversity of the peers."),
                    ("table", pd.DataFrame(rows, columns=["", "", *(HEADINGS[name] for name in shown)]))]
    if by_name:
        content += [("p", "Groups of different networks in the last epoch: the error of each student."),
                    ("table", pd.DataFrame(by_name, columns=["", "student", "error"]))]
    return [*content, ("p", "The commands of the first seed:"), ("pre", "\n".join(commands))]


def lines_of(row: dict, source: str) -> dict[str, list[str]]:
    """The lines of a row: their names, and a text for each cell. source: of the published numbers, "" without any."""
    cells = row["cells"]
    lines = {f"{epoch} epoch": [groups_in_words(cell["groups"], epoch) for cell in cells] for epoch in ("best", "last")}
    if source:
        lines[source] = [number(cell["published"]) for cell in cells]
        lines["difference"] = ["\n".join(f"{group['difference']:+.2f}" for group in cell["groups"]
                                         if group["difference"] is not None) or "–" for cell in cells]
    return lines | {other["source"]: [number(pair) for pair in other["published"]] for other in row["others"]}


def groups_in_words(groups: list[dict], epoch: str) -> str:
    """A line for each group of a cell: its error, and the flags that distinguish it."""
    texts = []
    for group in groups:
        flags = distinguishing_flags(group, groups)
        texts.append(f"{number(group[epoch])} ({group['n']}){flags and f' [{flags}]'}")
    return "\n".join(texts) or "not run"


def distinguishing_flags(group: dict, groups: list[dict]) -> str:
    """The flags in which a group differs from the others of its cell, or from the methods of the paper."""
    flags = group["flags"]
    names = set(group.get("unusual", []))
    for other in groups:
        names |= {name for name in flags | other["flags"] if flags.get(name) != other["flags"].get(name)}
    return ", ".join(f"{name} {flags.get(name)}" for name in sorted(names))


def difference_blocks(table: dict) -> list[Block]:
    """A table of differences from one group."""
    reference, measure = table["reference"], table["measure"]
    digits = 3 if measure == "diversity" else 2
    lines = [[line["name"], line["result"], str(line["n"]), number([line["value"]], digits),
              number([line["reference_value"]], digits), number([line["mean"]], digits, "+"),
              "–" if line["low"] is None else f"{line['low']:+.{digits}f} to {line['high']:+.{digits}f}",
              probability(line["p"]), probability(line["p_holm"])] for line in table["lines"]]
    return [("p", f"{table['network']}, {table['data']}, compared with {reference}:"),
            ("table", pd.DataFrame(lines, columns=["", f"compared with {reference}", "seeds", measure,
                                                   f"{measure} of {reference}", "difference", "95 % interval", "p",
                                                   "p, Holm"]))]


def attention_blocks(table: dict) -> list[Block]:
    """A table of how much peers attend to themselves."""
    lines = [[line["name"], str(len(line["seeds"])), *map(number, line["means"])] for line in table["lines"]]
    return [("p", f"{table['network']}, {table['data']}:"),
            ("table", pd.DataFrame(lines, columns=["", "seeds", *(f"epoch {epoch}" for epoch in table["epochs"])]))]


def number(pair: list | None, digits: int = 2, sign: str = "") -> str:
    """"mean ± deviation", or "mean" if there is no deviation. sign: "+" writes it before positive numbers, too."""
    return " ± ".join(f"{value:{sign}.{digits}f}" for value in pair or [] if value is not None) or "–"


def probability(p: float | None) -> str:
    """A p value with three digits after the point."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def spaced(values: list) -> str:
    """[1, 2, 3] -> "1 2 3"."""
    return " ".join(map(str, values))


def markdown(content: list[Block]) -> str:
    """The blocks as Markdown."""
    forms = {"h1": "# {}", "h2": "## {}", "h3": "### {}", "p": "{}", "pre": "```sh\n{}\n```"}
    return "\n\n".join(table_in_markdown(value) if kind == "table" else forms[kind].format(value)
                       for kind, value in content) + "\n"


def table_in_markdown(table: pd.DataFrame) -> str:
    """The first two columns are left-aligned, the others right-aligned. A line within a cell ends with <br>."""
    def escape(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", "<br>")

    align = ["left", "left", *["right"] * (table.shape[1] - 2)]
    return table.rename(columns=escape).map(escape).to_markdown(index=False, disable_numparse=True, colalign=align)


def html(content: list[Block], figures: Mapping[str, tuple[str, bytes]]) -> str:
    """The blocks and figures as one page that needs no other file. figures: name -> caption and PNG."""
    encoded = [(caption, base64.b64encode(image).decode()) for caption, image in figures.values()]
    return TEMPLATES.get_template("page.html.jinja").render(blocks=content, figures=encoded)


# --- CSV --------------------------------------------------------------------------------------------------------------


def csv(report: list[dict]) -> str:
    """A line for each group in each table, and a line for each cell without a group (n = 0).

    leader, students, ensemble, gated_ensemble and diversity are those of the last epoch, for groups of students only.
    Then a line for each student of a group of different networks, with its error in the last epoch: its table is
    "different networks".
    Then a line for each difference: its table is "differences", and only these lines have a measure and a reference.
    """
    cells = [({"recipe": records.recipe_title(section["recipe"]), "table": table["name"] or table["title"],
               "row": row["name"], "column": column}, cell)
             for section in report for table in section["tables"] for row in table["rows"]
             for column, cell in zip(table["columns"], row["cells"], strict=True)]
    lines = [place | as_columns(published=cell["published"]) | (group_in_csv(group, cell) if group else {"n": 0})
             for place, cell in cells for group in cell["groups"] or [None]]
    lines += [place | {"table": "different networks", "student": name} | about_group(group, cell)
              | {"row": f"{place['row']}, {records.data_title(group['flags'])}"} | as_columns(last=error)
              for place, cell in cells for group in cell["groups"] for name, error in group["students_by_name"].items()]
    lines += [{"recipe": records.recipe_title(section["recipe"]), "table": "differences", "column": line["name"],
               "row": f"{table['network']}, {table['data']}", "measure": table["measure"],
               "reference": table["reference"], **line, "minus_reference": line["mean"],
               "seeds": spaced(line["seeds"])}
              for section in report for table in section["differences"] for line in table["lines"]]
    pairs = [f"{name}_{part}" for name in ("best", "last", "published", *COLUMNS.values()) for part in ("mean", "sd")]
    columns = ["recipe", "table", "row", "column", "telling_flags", "n", "seeds", "best_epochs", *pairs, "difference",
               "command", "student", "measure", "reference", "value", "reference_value", "minus_reference",
               "low", "high", "p", "p_holm", "result"]
    return pd.DataFrame(lines, columns=columns).to_csv(index=False, lineterminator="\n")


def group_in_csv(group: dict, cell: dict) -> dict:
    """The values of a group in the line of its cell."""
    besides = {COLUMNS[name]: pair for name, pair in group["besides"].items() if "dist" in group["besides"]}
    return about_group(group, cell) | as_columns(best=group["best"], last=group["last"], **besides) | {
        "best_epochs": spaced(group["best_epochs"]), "difference": group["difference"], "command": group["command"]}


def about_group(group: dict, cell: dict) -> dict:
    """The columns that every line of a group has."""
    return {"n": group["n"], "seeds": spaced(group["seeds"]),
            "telling_flags": distinguishing_flags(group, cell["groups"])}


def as_columns(**pairs: list | None) -> dict:
    """Each pair as two columns, mean and standard deviation."""
    return {f"{name}_{part}": value for name, pair in pairs.items() if pair
            for part, value in zip(("mean", "sd"), pair, strict=True)}
