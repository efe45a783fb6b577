"""The figures of report.py: learning curves, differences between methods, diversity, group size, attention.

Colours are those of Okabe and Ito (with a darker yellow), which colour-blind people can distinguish. Line styles and
markers distinguish the methods in grey, too. A band is the mean over seeds ± their standard deviation.
"""

import io
import itertools
import math
import re
from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis import records
from analysis.comparisons import tables_of_differences
from analysis.records import DATA, OTHER_RECIPE, RECIPE, flags_of, labels_of, size_of, split, split_by, test_outputs
from methods import METHODS, position, title_of
from training.outputs import EMA_MEAN, FUSED, GATE, LEADER, MEAN, WHOLE, metric, students_of

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#e69f00", "#56b4e9", "#009e73", "#b8a800", "#0072b2", "#d55e00", "#cc79a7")
# Colour, line and marker of each method in METHODS, in the order of that table. The others are for further groups.
STYLES = [(BLACK, ":", ""), (YELLOW, (0, (1, 1)), "P"), (BLACK, "-", "x"), (PURPLE, "--", "s"), (GREEN, "-.", "^"),
          (ORANGE, "--", "D"), (SKY, "-", "v"), (BLUE, "-", "o"),
          (PURPLE, "-", "p"), (RED, "-", "d"), (GREEN, "-", "h"), (RED, "--", "<"),
          (RED, "-", "*"), (PURPLE, "-.", "p"), (GREEN, "--", "h"), (ORANGE, ":", "<"), (SKY, "--", ">"),
          (BLACK, "--", "8"), (YELLOW, "-.", "d"), (RED, ":", "X")]
OUTPUTS = {  # the outputs of a group in learning curves: label, colour, line
    LEADER: ("leader or deployed network", BLUE, "-"),
    MEAN: ("mean of the students", ORANGE, "--"), WHOLE: ("ensemble", GREEN, "-."),
    GATE: ("gated ensemble", PURPLE, (0, (1, 1))), FUSED: ("fused classifier", RED, (0, (3, 1))),
    EMA_MEAN: ("mean of the mean peers", SKY, "-")}
LAYOUT = {"font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False,
          "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "legend.frameon": False,
          "lines.linewidth": 1.4, "lines.markersize": 4, "figure.dpi": 160, "figure.constrained_layout.use": True}


def draw_all(runs: pd.DataFrame) -> dict[str, tuple[str, bytes]]:
    """All figures that can be made of these runs: file name -> caption and PNG. runs: records.table_of_runs."""
    drawn: dict[str, tuple[str, bytes]] = {}
    with rc_context(LAYOUT):
        for same_training in split_by(runs, (*RECIPE, *OTHER_RECIPE, *DATA, "model")):
            flags = flags_of(same_training)
            of = f"{records.network_title(flags['model'])}, {flags['dataset']}, {records.recipe_title(flags)}"
            for kind, title, figure in figures_of(same_training):
                if figure is not None:
                    name = stem = re.sub(r"[^\w.+-]", "_", f"{kind}_{flags['dataset']}_{flags['model']}")
                    while name in drawn:  # the same network and data, trained with another recipe
                        name = f"{stem}_{len(drawn)}"
                    file = io.BytesIO()
                    FigureCanvasAgg(figure)
                    figure.savefig(file, format="png")
                    drawn[name] = (f"{title}: {of}", file.getvalue())
    return drawn


def figures_of(runs: pd.DataFrame) -> Iterable[tuple[str, str, Figure | None]]:
    """-> kind, title and figure for runs of one network, data set and recipe."""
    groups = split(runs)
    with_four = {flags_of(g)["method"] for g in groups if size_of(g) == 4}
    four = [g for g in groups if size_of(g) == 4 or flags_of(g)["method"] not in with_four]
    yield "curves", "Learning curves", learning_curves(four)
    yield "differences", "Differences of the last epoch's error, paired by seed, with 95 % intervals", differences(runs)
    yield "diversity", "Diversity (the paper's Figure 4)", diversity(four)
    yield "group_size", "Error against group size (the paper's Figure 3)", group_size(groups)
    for g in four:
        method = flags_of(g)["method"]
        yield f"attention_{method}", f"Attention of {title_of(method)}", attention(g)


def styles_of(methods: Iterable[str]) -> list[tuple]:
    """Colour, line and marker for each of these groups. Two groups of the same method get different ones."""
    others = itertools.cycle(STYLES[len(METHODS):] or STYLES)
    styles = {}
    for i, method in enumerate(methods):
        first = method in METHODS and method not in styles
        styles[method if first else i] = STYLES[position(method)[0] % len(STYLES)] if first else next(others)
    return list(styles.values())


def curve(group: pd.DataFrame, name: str) -> np.ndarray:
    """A metric of every run and epoch [seeds, epochs]."""
    return np.array([[record[name] for record in history] for history in group["history"]])


def error_curve(group: pd.DataFrame, output: str) -> np.ndarray:
    """The top-1 test error of an output in % [seeds, epochs]."""
    return 100 - curve(group, metric(output, "test", "accTop1"))


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
    columns = min(4, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(2.1 * columns + 0.6, 2.0 * rows + 0.8))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for ax, g, label in zip(axes.flat, groups, labels_of(groups), strict=False):
        draw_group(ax, g)
        ax.set_title(f"{label}, {len(g)} seed{'s' * (len(g) > 1)}")
    for ax in axes.flat[len(groups):]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("test error, %")
    for ax in axes.flat[max(0, len(groups) - columns):len(groups)]:
        ax.set_xlabel("epoch")
        ax.tick_params(labelbottom=True)
    lines = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fitting = int(figure.get_figwidth() / 2.2)  # the longest label and its line take 2.2 inches
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(fitting, len(lines)))
    return figure


def draw_group(ax: Axes, group: pd.DataFrame) -> None:
    """The lines of a panel."""
    outputs = test_outputs(group["history"].iloc[0][-1])
    if MEAN not in outputs:
        band(ax, error_curve(group, WHOLE), BLACK, "-", "network")
        return
    for i, output in enumerate(students_of(outputs)):
        mean = error_curve(group, output).mean(0)
        ax.plot(range(1, len(mean) + 1), mean, color="#777777", linewidth=0.6, zorder=1.5,
                label="each student" if i == 0 else None)
    for output, (label, colour, line) in OUTPUTS.items():
        if output in outputs:
            band(ax, error_curve(group, output), colour, line, label)


def differences(runs: pd.DataFrame) -> Figure | None:
    """A panel for each reference: how much the error of each method differs from its error, with confidence intervals.

    A difference without an interval is a hollow point. None if there is nothing to compare.
    """
    tables = [(table, lines) for table in tables_of_differences(runs, ["error"])
              if (lines := [line for line in table["lines"] if line["n"]])]
    if not tables:
        return None
    heights = [len(lines) + 1.5 for _, lines in tables]
    figure = Figure(figsize=(6.0, 0.24 * sum(heights) + 0.5))
    axes = figure.subplots(len(tables), squeeze=False, sharex=True, height_ratios=heights)
    for ax, (table, lines) in zip(axes.flat, tables, strict=True):
        for y, line in enumerate(lines):
            known, mean = line["low"] is not None, line["mean"]
            ax.errorbar(mean, y, xerr=[[mean - line["low"]], [line["high"] - mean]] if known else None, color=BLUE,
                        marker="o", markerfacecolor=BLUE if known else "white", capsize=3)
        ax.axvline(0, color=BLACK, linewidth=1)
        names = [f"{line['name']}, {line['n']} seed{'s' * (line['n'] > 1)}" for line in lines]
        ax.set_yticks(range(len(lines)), names)
        ax.set(title=f"{table['network']}, compared with {table['reference']}", ylim=(len(lines) - 0.5, -0.5))
        ax.tick_params(labelbottom=ax is axes[-1, 0])
    axes[-1, 0].set_xlabel("difference of the test error, points; below 0: lower error\nhollow: no interval")
    return figure


def diversity(groups: list[pd.DataFrame]) -> Figure | None:
    """The distance between two peers' outputs in each epoch, a line for each method; None if no group has it.

    The legend has the order of the last epoch, and its values.
    """
    groups = [g for g in groups if g["history"].map(lambda history: "dist" in history[0]).all()]
    if not groups:
        return None
    figure = Figure(figsize=(6.4, max(3.2, 0.21 * len(groups) + 0.4)))
    ax = figure.subplots()
    styles = styles_of(flags_of(g)["method"] for g in groups)
    drawn = zip([curve(g, "dist") for g in groups], labels_of(groups), styles, strict=True)
    for values, label, (colour, line, marker) in sorted(drawn, key=lambda each: -each[0][:, -1].mean()):
        band(ax, values, colour, line, f"{values[:, -1].mean():.3f} {label}", marker)
    ax.set(xlabel="epoch", ylabel="diversity", ylim=(0, None))
    figure.legend(loc="outside right upper", title="last epoch", alignment="left")
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
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="number of students", ylabel="test error, %")
    figure.legend(loc="outside right upper")
    return figure


def attention(group: pd.DataFrame, shown: int = 5) -> Figure | None:
    """The mean attention matrix over the test images, and how much weight a peer gives to itself.

    The matrices are those of ``shown`` epochs of the first seed. The weights are those of all epochs and seeds. None if
    the group has no attention.
    """
    if not all(record.get("attention") for history in group["history"] for record in history):
        return None
    last = flags_of(group)["num_epochs"]
    chosen = sorted({round(1 + i * (last - 1) / max(1, shown - 1)) for i in range(shown)})
    figure = Figure(figsize=(1.45 * len(chosen) + 3.0, 2.2))
    axes = figure.subplots(1, len(chosen) + 1, width_ratios=[1] * len(chosen) + [1.7])
    matrices = curve(group, "attention")  # [seeds, epochs, peers, peers]
    for ax, epoch in zip(axes, chosen, strict=False):
        draw_matrix(ax, matrices[0, epoch - 1])
        ax.set_title(f"epoch {epoch}" + (f", seed {group['seed'].iloc[0]}" if ax is axes[0] else ""))
    axes[0].set_ylabel("peer a")
    band(axes[-1], curve(group, "attention_self"), BLUE, "-", "itself", "o")
    axes[-1].axhline(1 / matrices.shape[-1], color=BLACK, linestyle=":", linewidth=1, label="uniform")
    axes[-1].legend(loc="upper left", ncols=2, fontsize=7)
    axes[-1].set(title="weight of a peer for itself", xlabel="epoch", ylim=(0, 1.15))
    return figure


def draw_matrix(ax: Axes, matrix: np.ndarray) -> None:
    """An attention matrix [peers, peers], with numbers if there are at most four peers."""
    ax.imshow(matrix, cmap="cividis", vmin=0, vmax=1)
    if len(matrix) <= 4:
        for (a, b), value in np.ndenumerate(matrix):
            ax.text(b, a, f"{value:.2f}", ha="center", va="center", fontsize=8,
                    color="white" if value < 0.6 else "black")
    ax.set(xticks=range(len(matrix)), yticks=range(len(matrix)), xlabel="peer b")
    ax.grid(False)
