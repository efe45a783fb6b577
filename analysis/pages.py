"""The report as Markdown, as a page with figures (HTML) and as CSV."""

import base64
from collections.abc import Mapping
from pathlib import Path

import jinja2
import pandas as pd

from analysis.groups import COLUMNS
from analysis.titles import recipe_title
from training.outputs import MEAN

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=lambda name: "html" in name,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
HEADINGS = {name: column.replace("_", " ") for name, column in COLUMNS.items()} | {
    MEAN: "mean of the students or peers"}


def markdown(report: list[dict], source: str) -> str:
    """The report as Markdown. report: tables.sections. source: the paper."""
    return TEMPLATES.get_template("report.md.jinja").render(
        sections=sections_in_words(report), source=source, table_in_markdown=table_in_markdown)


def html(report: list[dict], source: str, figures: Mapping[str, tuple[str, bytes]]) -> str:
    """The report as one page that needs no other file. figures: (caption, PNG) by name."""
    encoded = [(caption, base64.b64encode(image).decode()) for caption, image in figures.values()]
    return TEMPLATES.get_template("report.html.jinja").render(
        sections=sections_in_words(report), source=source, figures=encoded)


def table_in_markdown(table: pd.DataFrame) -> str:
    """Names to the left, numbers to the right. A line of a cell ends with <br>."""
    escaped = table.rename(columns=escape).map(escape)
    return escaped.to_markdown(index=False, disable_numparse=True,
                               colalign=["left", "left", *["right"] * (table.shape[1] - 2)])


def escape(text: str) -> str:
    """Keep a text within its cell."""
    return text.replace("|", "\\|").replace("\n", "<br>")


def sections_in_words(report: list[dict]) -> list[dict]:
    """What both templates show."""
    return [{"title": recipe_title(section["recipe"]),
             "other_recipe": not section["is_the_papers"] and any(table["name"] for table in section["tables"]),
             "tables": [table_in_words(table) for table in section["tables"]]} for section in report]


def table_in_words(table: dict) -> dict:
    """A table's title and commands; its cells, and what else was measured of groups of students, as DataFrames."""
    lines, measured, commands = [], [], []
    for row in table["rows"]:
        for i, (name, texts) in enumerate(lines_of(row, published=bool(table["name"])).items()):
            lines.append([row["name"] if i == 0 else "", name, *texts])
        for column, cell in zip(table["columns"], row["cells"], strict=True):
            for group in cell["groups"]:
                commands.append(f"{group['command']}  # {seeds_in_words(group)}")
                if "dist" in group["besides"]:
                    measured.append([row["name"], column, *(
                        number(group["besides"].get(name), digits=3 if name == "dist" else 2) for name in HEADINGS)])
    return {"title": table["title"] + (f" ({table['note']})" if table["note"] else ""), "commands": commands,
            "lines": pd.DataFrame(lines, columns=["", "", *table["columns"]]),
            "measured": pd.DataFrame(measured, columns=["", "", *HEADINGS.values()])}


def lines_of(row: dict, published: bool) -> dict[str, list[str]]:
    """The lines of a row: their names, and a text for each cell. published: whether to compare with the paper."""
    cells = row["cells"]
    lines = {f"{epoch} epoch": [groups_in_words(cell["groups"], epoch) for cell in cells] for epoch in ("best", "last")}
    if published:
        lines["paper"] = [number(cell["published"]) for cell in cells]
        lines["difference"] = ["\n".join(f"{group['difference']:+.2f}" for group in cell["groups"]
                                         if group["difference"] is not None) or "–" for cell in cells]
    return lines | {other["source"]: [number(pair) for pair in other["published"]] for other in row["others"]}


def number(pair: list | None, digits: int = 2) -> str:
    """"mean ± deviation", or "mean" if there is no deviation."""
    return " ± ".join(f"{value:.{digits}f}" for value in pair if value is not None) if pair else "–"


def groups_in_words(groups: list[dict], epoch: str) -> str:
    """A line for each group of a cell: its number, and the flags that distinguish it."""
    texts = []
    for group in groups:
        flags = distinguishing_flags(group, groups)
        texts.append(f"{number(group[epoch])} ({group['n']})" + (f" [{flags}]" if flags else ""))
    return "\n".join(texts) or "not run"


def distinguishing_flags(group: dict, groups: list[dict]) -> str:
    """The flags in which a group differs from the others of its cell, or from the methods of the paper."""
    flags = group["flags"]
    names = set(group.get("unusual", []))
    for other in groups:
        names |= {name for name in flags | other["flags"] if flags.get(name) != other["flags"].get(name)}
    return ", ".join(f"{name} {flags.get(name)}" for name in sorted(names))


def seeds_in_words(group: dict) -> str:
    """A group's seeds, and the best epoch of each."""
    return f"seeds {spaced(group['seeds'])}; best epochs {spaced(group['best_epochs'])}"


def spaced(values: list) -> str:
    return " ".join(map(str, values))


def csv(report: list[dict]) -> str:
    """A line for each group in each table, and for each cell without a group.

    leader, students, ensemble, gated_ensemble and diversity are those of the last epoch, for groups of students only.
    """
    names = ("best", "last", "published", *COLUMNS.values())
    columns = ["recipe", "table", "row", "column", "telling_flags", "n", "seeds", "best_epochs",
               *(f"{name}_{part}" for name in names for part in ("mean", "sd")), "difference", "command"]
    lines = []
    for section in report:
        for table in section["tables"]:
            for row in table["rows"]:
                for column, cell in zip(table["columns"], row["cells"], strict=True):
                    place = {"recipe": recipe_title(section["recipe"]), "table": table["name"] or table["title"],
                             "row": row["name"], "column": column, "n": 0} | pair("published", cell["published"])
                    lines += [place | csv_line(group, cell["groups"]) for group in cell["groups"]] or [place]
    return pd.DataFrame(lines, columns=columns).to_csv(index=False, lineterminator="\n")


def csv_line(group: dict, groups: list[dict]) -> dict:
    """A group of a cell in CSV. groups: all groups of the cell."""
    line = {"telling_flags": distinguishing_flags(group, groups), "n": group["n"], "seeds": spaced(group["seeds"]),
            "best_epochs": spaced(group["best_epochs"]), "difference": group["difference"],
            "command": group["command"]} | pair("best", group["best"]) | pair("last", group["last"])
    for name, values in group["besides"].items() if "dist" in group["besides"] else ():
        line |= pair(COLUMNS[name], values)
    return line


def pair(name: str, values: list | None) -> dict:
    """Mean and standard deviation as two cells."""
    return dict(zip((f"{name}_mean", f"{name}_sd"), values or (None, None), strict=True))
