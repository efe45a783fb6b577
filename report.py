"""Tables and figures of many finished runs, beside the published numbers.

    python report.py runs/paper                          # Markdown
    python report.py runs/paper --html report.html       # the same and all figures in one page

Runs form a group if all their flags agree, except the seed, paths, device and versions. A table shows the mean and the
standard deviation (n - 1 in the denominator) of each group's top-1 errors. The published numbers are in
results/published.json. Further tables compare the methods, paired by seed (analysis/comparisons.py).
"""

import argparse
import json
import sys
from pathlib import Path

import utils
from runtime.errors import UserError, warn
from runtime.files import as_json, save
from training.folder import belongs_to_run


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The flags. If they are wrong, the script ends with one line and exit code 2."""
    p = utils.Parser(__doc__, "RUNS ...")
    p.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, or folders that contain them")
    g = p.add_mutually_exclusive_group()
    g.add_argument("--csv", action="store_true", help="print a line for each group instead of tables")
    g.add_argument("--json", action="store_true", help="print all results as JSON instead of tables")
    p.add_argument("--html", type=Path, metavar="FILE", help="also write tables and figures into one page")
    p.add_argument("--figures", type=Path, metavar="FOLDER", help="also write the figures, as PNG")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Print the report and write its files. UserError if there is no finished run."""
    args = parse_args(argv)
    if args.html and (args.html.exists() and not args.html.is_file() or belongs_to_run(args.html)):
        raise UserError(f"--html cannot replace {args.html}, which is a folder, a device or a pipe, or belongs to a "
                        "run: choose another name")
    from analysis import pages, records  # here, because --help does not need pandas

    found, notes = records.find_runs(args.runs)
    runs, more_notes = records.table_of_runs(found) if found else (None, [])
    for note in notes + more_notes:
        warn(note)
    if not found:
        raise UserError(f"no finished run in {', '.join(map(str, args.runs))}: train one, or name another folder")
    published = json.loads(pages.PUBLISHED.read_text())
    sections = pages.sections(runs, published)
    if args.html or args.figures:
        from analysis import figures

        drawn = figures.draw_all(runs)
        if args.figures:
            args.figures.mkdir(parents=True, exist_ok=True)
            save({args.figures / f"{name}.png": figure.image for name, figure in drawn.items()})
        if args.html:
            args.html.parent.mkdir(parents=True, exist_ok=True)
            page = pages.html(pages.blocks(sections, published["source"], drawn.values()))
            save({args.html: page.encode(errors="backslashreplace")})  # names of files may be no UTF-8
    if args.json:
        text = as_json({"sections": sections, "notes": notes + more_notes}).decode()
    else:
        text = pages.csv(sections) if args.csv else pages.markdown(pages.blocks(sections, published["source"]))
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # the same bytes on every machine
    utils.write_result(text)


if __name__ == "__main__":
    utils.command(main)
