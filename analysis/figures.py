"""The figures of report.py: learning curves, differences between methods, diversity, group size.

Colours are those of Okabe and Ito (with a darker yellow), which colour-blind people can distinguish. Line styles and
markers distinguish the methods in grey, too.
"""

import io
import itertools
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis import records
from analysis.comparisons import tables_of_differences
from analysis.records import DATA, OTHER_RECIPE, RECIPE, flags_of, labels_of, size_of, split, split_by, test_outputs
from methods import METHODS, position
from training.outputs import EMA_MEAN, FUSED, GATE, LEADER, MEAN, WHOLE, metric, students_of

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#e69f00", "#56b4e9", "#009e73", "#b8a800", "#0072b2", "#d55e00", "#cc79a7")
# The colour, line and marker of a method follow from its place in METHODS.
COLOURS = (BLACK, YELLOW, RED, PURPLE, GREEN, ORANGE, SKY, BLUE)
LINES = (":", (0, (3, 1, 1, 1)), "-", "--", "-.")
MARKERS = "xPXs^Dvopdh<*>8H1234+"
OUTPUTS = {  # the outputs of a group in learning curves: label, colour, line
    LEADER: ("leader or deployed network", BLUE, "-"),
    MEAN: ("mean of the students", ORANGE, "--"), WHOLE: ("ensemble", GREEN, "-."),
    GATE: ("gated ensemble", PURPLE, (0, (1, 1))), FUSED: ("fused classifier", RED, (0, (3, 1))),
    EMA_MEAN: ("mean of the mean peers", SKY, "-")}
LAYOUT = {"font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False,
          "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "legend.frameon": False,
          "lines.linewidth": 1.4, "lines.markersize": 4, "figure.dpi": 160, "figure.constrained_layout.use": True}


class Drawn(NamedTuple):
    """A figure as PNG. place: the recipe, data and network of its runs, as in the tables of pages.py."""

    kind: str
    place: tuple[str, str, str]
    caption: str
    image: bytes


def draw_all(runs: pd.DataFrame) -> dict[str, Drawn]:
    """All figures that can be made of these runs, by file name. runs: records.table_of_runs."""
    drawn: dict[str, Drawn] = {}
    with rc_context(LAYOUT):
        for same_training in split_by(runs, (*RECIPE, *OTHER_RECIPE, *DATA, "model")):
            flags = flags_of(same_training)
            place = records.recipe_title(flags), flags["data"], flags["model"]
            of = f"{records.network_title(flags['model'])} on {place[1]}"
            for kind, caption, figure in figures_of(same_training):
                if figure is not None:
                    name = stem = re.sub(r"[^\w.+-]", "_", f"{kind}_{flags['dataset']}_{flags['model']}")
                    while name in drawn:  # the same network and data, trained with another recipe
                        name = f"{stem}_{len(drawn)}"
                    file = io.BytesIO()
                    FigureCanvasAgg(figure)
                    figure.savefig(file, format="png")
                    drawn[name] = Drawn(kind, place, f"{of}: {caption}", file.getvalue())
    return drawn


def figures_of(runs: pd.DataFrame) -> Iterable[tuple[str, str, Figure | None]]:
    """-> kind, caption and figure for runs of one network, data set and recipe."""
    groups = split(runs)
    with_four = {flags_of(g)["method"] for g in groups if size_of(g) == 4}
    four = [g for g in groups if size_of(g) == 4 or flags_of(g)["method"] not in with_four]
    yield "curves", ("learning curves. Lines are means over seeds, bands ± one standard deviation. Grey: each student."
                     ), learning_curves(four)
    yield "differences", "differences of the last epoch's error, paired by seed, 95 % intervals.", differences(runs)
    yield "diversity", ("diversity of the peers (the paper's Figure 4); the weight of a peer for itself, if there is "
                        "attention; error against diversity in the last epoch. Lines and points are means over seeds, "
                        "bars ± one standard deviation."), diversity(four)
    yield "group_size", ("error at the best epoch against the number of students (the paper's Figure 3), mean ± one "
                         "standard deviation."), group_size(groups)


def with_sizes(groups: list[pd.DataFrame]) -> list[str]:
    """The label of each group, with its number of students unless that is 4."""
    return [label + (f", {size_of(g)} students" if size_of(g) != 4 else "")
            for g, label in zip(groups, labels_of(groups), strict=True)]


def styles_of(methods: Iterable[str]) -> list[tuple]:
    """Colour, line and marker for each of these groups. Two groups of the same method get different ones."""
    others, places = itertools.count(len(METHODS)), {}
    for i, method in enumerate(methods):
        first = method in METHODS and method not in places
        places[method if first else i] = position(method)[0] if first else next(others)
    return [(COLOURS[i % len(COLOURS)], LINES[i % len(LINES)], MARKERS[i % len(MARKERS)]) for i in places.values()]


def curve(group: pd.DataFrame, name: str) -> np.ndarray:
    """A metric of every run and epoch [seeds, epochs]; of accuracies the error."""
    values = np.array([[record[name] for record in history] for history in group["history"]])
    return 100 - values if name.endswith("accTop1") else values


def band(ax: Axes, values: np.ndarray, colour: str, line: object, label: str, marker: str = "") -> None:
    """Draw the mean over seeds of values [seeds, epochs], and the band of one standard deviation if there are two."""
    mean, epochs = values.mean(0), range(1, values.shape[1] + 1)
    marker = marker or ("." if len(mean) == 1 else "")  # a line through one point would be invisible
    ax.plot(epochs, mean, color=colour, linestyle=line, marker=marker, label=label, markevery=max(1, len(mean) // 12))
    if len(values) > 1:
        deviation = values.std(0, ddof=1)
        ax.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)


# --- one function for each kind of figure -----------------------------------------------------------------------------


def learning_curves(groups: list[pd.DataFrame]) -> Figure:
    """A panel for each method: the test errors of its outputs in each epoch."""
    rows = math.ceil(len(groups) / 4)
    columns = math.ceil(len(groups) / rows)
    figure = Figure(figsize=(2.1 * columns + 0.6, 2.0 * rows + 0.8))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for ax, g, label in zip(axes.flat, groups, with_sizes(groups), strict=False):
        draw_group(ax, g)
        ax.set_title(f"{label}, {records.plural(len(g), 'seed')}")
    for ax in axes.flat[len(groups):]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("test error, %")
    for ax in axes.flat[max(0, len(groups) - columns):len(groups)]:
        ax.set_xlabel("epoch")
        ax.tick_params(labelbottom=True)
        ax.locator_params(axis="x", integer=True)
    lines = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=columns)
    return figure


def draw_group(ax: Axes, group: pd.DataFrame) -> None:
    """The lines of a panel."""
    outputs = test_outputs(group["history"].iloc[0][-1])
    if MEAN not in outputs:
        band(ax, curve(group, metric(WHOLE, "test", "accTop1")), BLACK, "-", "network")
        return
    for i, output in enumerate(students_of(outputs)):
        mean = curve(group, metric(output, "test", "accTop1")).mean(0)
        ax.plot(range(1, len(mean) + 1), mean, color="#777777", linewidth=0.6, zorder=1.5,
                label="each student" if i == 0 else None)
    for output, (label, colour, line) in OUTPUTS.items():
        if output in outputs:
            band(ax, curve(group, metric(output, "test", "accTop1")), colour, line, label)


def differences(runs: pd.DataFrame) -> Figure | None:
    """A panel for each reference: how much the error of each method differs from its error, with confidence intervals.

    None if no reference has two differences with intervals: then a sentence says it all.
    """
    tables = [(table, lines) for table in tables_of_differences(runs, ["error"])
              if len(lines := [line for line in table["lines"] if line["p"] is not None]) > 1]
    if not tables:
        return None
    heights = [len(lines) + 1.5 for _, lines in tables]
    figure = Figure(figsize=(6.0, 0.24 * sum(heights) + 0.5))
    axes = figure.subplots(len(tables), squeeze=False, sharex=True, height_ratios=heights)
    for ax, (table, lines) in zip(axes.flat, tables, strict=True):
        for y, line in enumerate(lines):
            width = [[line["mean"] - line["low"]], [line["high"] - line["mean"]]]
            ax.errorbar(line["mean"], y, xerr=width, color=BLUE, marker="o", capsize=3)
        ax.axvline(0, color=BLACK, linewidth=1)
        ax.set_yticks(range(len(lines)), [f"{line['name']}, {line['n']} seeds" for line in lines])
        ax.set(title=f"{table['network']}, compared with {table['reference']}", ylim=(len(lines) - 0.5, -0.5))
        ax.tick_params(labelbottom=ax is axes[-1, 0])
    axes[-1, 0].set_xlabel("difference of the test error, points; below 0: lower error")
    return figure


def diversity(groups: list[pd.DataFrame]) -> Figure | None:
    """The distance between two peers' outputs in each epoch, and the error against it; None if no group has it.

    Between them the attention of peers to themselves, if there is attention.
    """
    groups = [g for g in groups if g["history"].map(lambda history: "dist" in history[0]).all()]
    if not groups:
        return None
    attending = [g["history"].map(lambda history: "attention_self" in history[0]).all() for g in groups]
    panels, rows = 2 + any(attending), math.ceil(len(groups) / 4)
    figure = Figure(figsize=(3.1 * panels, 2.8 + 0.2 * rows))
    axes = figure.subplots(1, panels)
    styles, labels = styles_of(flags_of(g)["method"] for g in groups), with_sizes(groups)
    for g, label, with_attention, (colour, line, marker) in zip(groups, labels, attending, styles, strict=True):
        for ax, name in zip(axes, ("dist", "attention_self")[:1 + with_attention], strict=False):
            band(ax, curve(g, name).mean(0, keepdims=True), colour, line, label, marker)
        (x, dx), (y, dy) = (records.mean_and_deviation(g[column]) for column in ("diversity", "last"))
        axes[-1].errorbar(x, y, dy, dx, color=colour, marker=marker or "o", linewidth=0.6)
    for ax, what in zip(axes[:-1], ("diversity", "weight of a peer for itself"), strict=False):
        ax.set(xlabel="epoch", ylabel=what, ylim=(0, None))
        ax.locator_params(axis="x", integer=True)
    axes[-1].set(xlabel="diversity, last epoch", ylabel="test error, %, last epoch", xmargin=0.15, ymargin=0.15)
    axes[-1].locator_params(nbins=5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(groups)))
    return figure


def group_size(groups: list[pd.DataFrame]) -> Figure | None:
    """Error at the best epoch against the number of students: a line for each method with several group sizes."""
    runs = pd.concat(groups)
    other_flags = {name for flags in runs["flags"] for name in flags} - {"num_branches"}
    families = [family for family in split_by(runs, other_flags) if family["num_branches"].nunique() > 1]
    if not families:
        return None
    figure = Figure(figsize=(4.6, 3.2))
    ax = figure.subplots()
    styles = styles_of(flags_of(family)["method"] for family in families)
    for family, label, (colour, line, marker) in zip(families, labels_of(families), styles, strict=True):
        errors = family.groupby("num_branches")["best"].agg(["mean", "std"])
        ax.errorbar(errors.index, errors["mean"], errors["std"].fillna(0), color=colour, linestyle=line,
                    marker=marker, label=label, capsize=2)
    ax.locator_params(axis="x", integer=True)
    ax.set(xlabel="number of students", ylabel="test error, %")
    figure.legend(loc="outside right upper")
    return figure
