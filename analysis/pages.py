"""The report: what its tables hold, and how they look as Markdown, as a page with figures (HTML) and as CSV.

``sections`` puts the runs into the paper's tables (results/published.json), and other runs into tables of their own.
report.py --json prints the sections. The other forms are made from them.
"""

import base64
import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import jinja2
import pandas as pd

from analysis import records
from analysis.comparisons import DIGITS, MEASURES, in_a_row, summary, tables_of_differences
from analysis.records import COLUMNS, DATA, OTHER_RECIPE, RECIPE, flags_of, mean_and_deviation, size_of, split, split_by
from methods import position, revision, title_of
from training.outputs import LEADER, MEAN

PUBLISHED = Path(__file__).parent.parent / "results" / "published.json"
TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                               trim_blocks=True, lstrip_blocks=True)
HEADINGS = {name: column.replace("_", " ") for name, column in COLUMNS.items() if name != LEADER} | {
    MEAN: "mean of the students"}  # the leader's error is that of the last epoch
ABOUT = """Tables show the mean ± standard deviation over seeds. Error is the top-1 error on the test images in %: the
leader's or deployed network's if there is one (of PCL: mean peer 0; of OKDPH: the hybrid), otherwise the students'
mean. The best epoch has the lowest error on the held-out images, or on the test images if none were held out. Other
measured columns are of the last epoch, without model selection. Diversity: mean distance between two peers' outputs. If
a table has another error, its title says so."""
NOT_THE_RECIPE = """The published CIFAR numbers have another recipe, so the differences measure more than the code."""
ABOUT_DIFFERENCES = """Each method minus the one that it is compared with, paired by seed, over the seeds that both
have. Differences of errors are in percentage points. A difference is significant if its 95 % confidence interval
(Student's t) does not contain 0. A test takes two common seeds. p: paired t-test, two-sided. Holm's correction is
applied within each table, so a test that stands in two tables has two corrected p values."""
ABOUT_ATTENTION = """The weight of a peer for itself (alpha_aa), averaged over the peers and the test images. If it is
1, the target of a peer is its own output."""

Block = tuple[str, object]  # an HTML element's name (h1, h2, h3, p, pre, table, figure), and its content


# --- content ----------------------------------------------------------------------------------------------------------


def sections(runs: pd.DataFrame, published: dict) -> list[dict]:
    """A section for each recipe. published: the content of results/published.json.

    A paper table appears only if it contains a run not shown earlier. Other runs follow, a table for each network and
    data set.
    """
    found = []
    for same_recipe in split_by(runs, (*RECIPE, *OTHER_RECIPE)):
        tables, shown = [], set()
        for name, layout in published["tables"].items():
            table = paper_table(name, layout, same_recipe, published["method"])
            folders = {folder for row in table["rows"] for cell in row["cells"] for group in cell["groups"]
                       for folder in group["runs"]}
            if not folders <= shown:
                tables.append(table)
                shown |= folders
        others = same_recipe[~same_recipe["folder"].isin(shown)]
        tables += [other_table(same_network) for same_network in split_by(others, (*DATA, "model"))]
        flags = flags_of(same_recipe)
        recipe = {name: flags[name] for name in RECIPE}
        recipe |= {name: flags[name] for name, usual in OTHER_RECIPE.items() if flags[name] != usual}
        found.append({"recipe": recipe, "is_the_papers": recipe == published["recipe"], "tables": tables,
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
            matching = runs[[all(({"num_branches": 4, "num_classes": len(flags["classes"])} | flags).get(flag) == value
                                 for flag, value in wanted.items()) for flags in runs["flags"]]]
            cells.append(cell(matching, published, "ensemble_" if column.get("measured") == "ensemble" else ""))
            for group in cells[-1]["groups"]:
                flags = group["flags"]
                branch_of_vgg = flags.get("MulStu") is False and flags["model"].startswith("vgg")
                own = {"dropout": 0.5 if branch_of_vgg else 0.0,  # as in the authors' code
                       "revision": revision(flags["method"])}
                expected = usual | own | layout.get("usual", {}) | column.get("usual", {})
                group["unusual"] = [flag for flag, value in expected.items() if flags.get(flag, value) != value]
        rows.append({"name": row["name"], "cells": cells, "others": row.get("others", [])})
    return {"name": name, "title": layout["title"], "note": layout.get("note", ""),
            "source": layout.get("source", "paper"), "columns": [column["name"] for column in layout["columns"]],
            "rows": rows}


def other_table(runs: pd.DataFrame) -> dict:
    """A table of runs of one network and data set that no table of the paper shows; a row for each group size."""
    methods, sizes = sorted(set(runs["method"]), key=position), sorted(set(runs["num_branches"]))
    rows = [{"name": records.network_title(runs["model"].iloc[0], size), "others": [], "cells": [
        cell(runs[(runs["num_branches"] == size) & (runs["method"] == method)], None) for method in methods]}
        for size in sizes]
    return {"name": "", "title": flags_of(runs)["data"], "note": "", "source": "",
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
        "command": group["command"].iloc[0], "runs": group["folder"].tolist()}
        for group in split(runs)]}


def attention_tables(runs: pd.DataFrame) -> list[dict]:
    """How much peers attend to themselves in some epochs (mean alpha_aa): for each network, size and data set."""
    tables = []
    for same_size in split_by(runs, (*DATA, "model", "num_branches")):
        groups = [group for group in split(same_size)
                  if all("attention_self" in history[0] for history in group["history"])]
        flags, lines = flags_of(same_size), []
        epochs = sorted({max(1, round(share * flags["num_epochs"])) for share in (0, 1/8, 1/4, 1/2, 3/4, 1)})
        for group, label in zip(groups, records.labels_of(groups), strict=True):
            weights = [pd.Series([history[e - 1]["attention_self"] for history in group["history"]]) for e in epochs]
            lines.append({"name": label, "seeds": group["seed"].tolist(), "means": [*map(mean_and_deviation, weights)]})
        tables += [{"network": records.network_title(flags["model"], size_of(same_size)),
                    "data": flags["data"], "epochs": epochs, "lines": lines}] if lines else []
    return tables


# --- Markdown and HTML ------------------------------------------------------------------------------------------------


def blocks(report: list[dict], source: str, drawn: Iterable = ()) -> list[Block]:
    """The content, used for both Markdown and HTML.

    report: from ``sections``. source: the paper. drawn: the values of figures.draw_all; each follows its table.
    """
    words = [records.recipe_words(section["recipe"]) for section in report]
    shared = [word for word in words[0] if all(word in others for others in words)]
    content = [("h1", title(report)), ("p", ABOUT)]
    content += [("p", f"Recipe of all runs: {'; '.join(shared)}.")] if shared else []
    if any(table["source"] == "paper" for section in report for table in section["tables"]):
        content.append(("p", f"Paper: {source}."))
    for section, own in zip(report, words, strict=True):
        alone = "Results" if len(report) == 1 else "No further flags"
        content.append(("h2", "; ".join(word for word in own if word not in shared) or alone))
        content += section_blocks(section, list(drawn))
    for text in (NOT_THE_RECIPE, ABOUT_DIFFERENCES, ABOUT_ATTENTION):
        for i in [i for i, (_, value) in enumerate(content) if value is text][:0:-1]:
            del content[i]  # it was said before
    commands = [f"{group['command']}  # {records.plural(group['n'], 'seed')}: {spaced(group['seeds'])}"
                for section in report for table in section["tables"] for *_, group in groups_of(table)]
    return [*content, ("h2", "The command of each group's first seed"), ("pre", "\n".join(dict.fromkeys(commands)))]


def title(report: list[dict]) -> str:
    """Methods, networks and data; how many, if there are more than four."""
    flags = [group["flags"] for section in report for table in section["tables"] for *_, group in groups_of(table)]

    def some(names: Iterable[str], word: str) -> str:
        names = list(dict.fromkeys(names))
        return in_a_row(names) if len(names) <= 4 else records.plural(len(names), word)

    methods = some(map(title_of, sorted({each["method"] for each in flags}, key=position)), "method")
    networks = some((records.network_title(each["model"]) for each in flags), "network")
    data = some((each["data"] for each in flags), "data set")
    return f"Test error of {methods}: {networks} on {data}"


def groups_of(table: dict) -> Iterator[tuple[dict, int, dict, dict]]:
    """-> row, number of the column, cell and group of each group in a table."""
    for row in table["rows"]:
        for i, cell in enumerate(row["cells"]):
            for group in cell["groups"]:
                yield row, i, cell, group


def section_blocks(section: dict, drawn: list) -> list[Block]:
    """The tables of a section, each with its figures behind it."""
    recipe = records.recipe_title(section["recipe"])

    def take(places: Collection[tuple[str, str]], *kinds: str) -> list[Block]:
        """The figures of these kinds, data and networks that were not taken before."""
        taken = [each for each in drawn if each.kind in kinds and each.place in {(recipe, *place) for place in places}]
        drawn[:] = [figure for figure in drawn if figure not in taken]
        return [("figure", figure) for figure in taken]

    content, places = [], set()
    for table in section["tables"]:
        places |= (own := {(group["flags"]["data"], group["flags"]["model"])
                           for *_, group in groups_of(table)})
        if table["name"] and not section["is_the_papers"]:
            content.append(("p", NOT_THE_RECIPE))
        content += [*error_blocks(table), *take(own, "curves", "diversity")]
    content += take(places, "group_size")
    several = len({(table["data"], table["network"]) for table in section["differences"]}) > 1
    for measure in MEASURES:
        compared = [table for table in section["differences"] if table["measure"] == measure]
        content += [("h3", f"Differences of the last epoch's {measure}"), ("p", ABOUT_DIFFERENCES)] if compared else []
        for place, tables in itertools.groupby(compared, key=lambda table: (table["data"], table["model"])):
            content += [block for table in tables for block in difference_blocks(table, several)]
            content += take([place], "differences") if measure == "error" else []
    if section["attention"]:
        content += [("h3", "Attention of the peers to themselves"), ("p", ABOUT_ATTENTION)]
    for table in section["attention"]:
        content += [("p", f"{table['network']}, {table['data']}:")] if len(section["attention"]) > 1 else []
        lines = [[line["name"], str(len(line["seeds"])), *map(number, line["means"])] for line in table["lines"]]
        content.append(("table", pd.DataFrame(lines, columns=["", "seeds", *(f"epoch {e}" for e in table["epochs"])])))
    return content


def error_blocks(table: dict) -> list[Block]:
    """A table with a line for each group, and one for each student of groups of different networks."""
    names, lines, by_name = {row["name"] for row, *_ in groups_of(table)}, [], []
    for row, i, cell, group in groups_of(table):
        flags = distinguishing_flags(group, cell["groups"])
        name = table["columns"][i] + (f" [{flags}]" if flags else "")
        name = f"{row['name']}, {name}" if len(names) > 1 else name
        line = {"": name, "seeds": str(group["n"]), "last epoch": number(group["last"]),
                "best epoch": number(group["best"])}
        if cell["published"]:
            line |= {table["source"]: number(cell["published"]), "best - published": f"{group['difference']:+.2f}"}
        line |= {other["source"]: number(other["published"][i]) for other in row["others"]}
        if "dist" in group["besides"]:
            line |= {heading: number(group["besides"].get(output), digits=3 if output == "dist" else 2)
                     for output, heading in HEADINGS.items()}
        lines.append(line)
        by_name += [[name, student, number(error)] for student, error in group["students_by_name"].items()]
    shown = pd.DataFrame(lines).fillna("–")
    heading, name = table["title"], next(iter(names))
    if len(names) == 1:
        heading = f"{heading}: {name}" if table["name"] else f"{name} on {heading}"
    content = [("h3", heading)]
    if table["note"]:
        content.append(("p", f"Note: {table['note']}."))
    content.append(("table", shown.loc[:, (shown != "–").any()]))
    if by_name:
        content += [("p", "The error of each student:"),
                    ("table", pd.DataFrame(by_name, columns=["", "student", "error"]))]
    return content


def distinguishing_flags(group: dict, groups: list[dict]) -> str:
    """The flags in which a group differs from the others of its cell, or from the methods of the paper."""
    flags = group["flags"]
    names = set(group.get("unusual", []))
    for other in groups:
        names |= {name for name in flags | other["flags"] if flags.get(name) != other["flags"].get(name)}
    return ", ".join(f"{name} {flags.get(name)}" for name in sorted(names - {*DATA}))  # "data" says it


def difference_blocks(table: dict, with_place: bool) -> list[Block]:
    """A sentence about the differences from one group, and their table, if the sentence does not say it all."""
    reference, measure, digits = table["reference"], table["measure"], DIGITS[table["measure"]]
    place = f"{table['network']}, {table['data']}, compared" if with_place else "Compared"
    sentence = ("p", f"{place} with {reference}: {summary(table)}")
    lines = [[line["name"], number([line["mean"]], digits, "+"),
              "–" if line["low"] is None else f"{line['low']:+.{digits}f} to {line['high']:+.{digits}f}",
              probability(line["p"]), probability(line["p_holm"]), line["result"], str(line["n"]),
              number([line["value"]], digits), number([line["reference_value"]], digits)] for line in table["lines"]]
    columns = ["", "difference", "95 % interval", "p", "p, Holm", f"compared with {reference}", "seeds", measure,
               f"{measure} of {reference}"]
    tested = sum(line["p"] is not None for line in table["lines"])
    return [sentence] if len(lines) == 1 or not tested else [sentence, ("table", pd.DataFrame(lines, columns=columns))]


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
    """The blocks as Markdown, without figures."""
    forms = {"h1": "# {}", "h2": "## {}", "h3": "### {}", "p": "{}", "pre": "```sh\n{}\n```"}
    return "\n\n".join(table_in_markdown(value) if kind == "table" else forms[kind].format(value)
                       for kind, value in content) + "\n"


def table_in_markdown(table: pd.DataFrame) -> str:
    """The first column is left-aligned, the others right-aligned."""
    align = ["left", *["right"] * (table.shape[1] - 1)]
    escaped = table.map(lambda text: text.replace("|", "\\|"))
    return escaped.to_markdown(index=False, disable_numparse=True, colalign=align)


def html(content: list[Block]) -> str:
    """The blocks as one page that needs no other file."""
    def whole(text: str) -> str:
        return re.sub(r"(?<=\w)-(?=\w)", "\u2011", text)  # a line does not break after the hyphen of a name

    page = TEMPLATES.get_template("page.html.jinja")
    return page.render(blocks=content, whole=whole, encoded=lambda image: base64.b64encode(image).decode())


# --- CSV --------------------------------------------------------------------------------------------------------------


def csv(report: list[dict]) -> str:
    """A line for each group in each table.

    leader, students, ensemble, gated_ensemble and diversity are those of the last epoch, for groups of students only.
    """
    lines = []
    for section in report:
        for table in section["tables"]:
            for row, i, cell, group in groups_of(table):
                pairs = {"best": group["best"], "last": group["last"], "published": cell["published"] or []} | {
                    COLUMNS[output]: pair for output, pair in group["besides"].items() if "dist" in group["besides"]}
                lines.append({
                    "recipe": records.recipe_title(section["recipe"]), "table": table["name"] or table["title"],
                    "row": row["name"], "column": table["columns"][i], "n": group["n"],
                    "telling_flags": distinguishing_flags(group, cell["groups"]), "seeds": spaced(group["seeds"]),
                    "best_epochs": spaced(group["best_epochs"]), "difference": group["difference"],
                    "command": group["command"]} | {f"{name}_{part}": value for name, pair in pairs.items()
                                                    for part, value in zip(("mean", "sd"), pair, strict=False)})
    pairs = [f"{name}_{part}" for name in ("best", "last", "published", *COLUMNS.values()) for part in ("mean", "sd")]
    columns = ["recipe", "table", "row", "column", "telling_flags", "n", "seeds", "best_epochs", *pairs, "difference",
               "command"]
    return pd.DataFrame(lines, columns=columns).to_csv(index=False, lineterminator="\n")
