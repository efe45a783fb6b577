"""The pictures of report.py: learning curves, diversity, group size, attention.

Colours are Okabe and Ito's (the yellow darker), which the colour-blind can tell apart; line styles and markers say the
same in grey. A band is the mean over seeds +- their standard deviation.
"""

import io
import math
import re
from collections.abc import Iterable

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from records import CELL, DATA, METHODS, RECIPE, Group, by, recipe_in_words, title_of

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#e69f00", "#56b4e9", "#009e73", "#b8a800", "#0072b2", "#d55e00", "#cc79a7")
STYLES = {  # of a method, the same in every figure: colour, line, marker
    "baseline": (BLACK, ":", ""), "KD": (YELLOW, (0, (1, 1)), "P"), "Ind": (BLACK, "-", "x"),
    "DML": (PURPLE, "--", "s"), "CL-ILR": (GREEN, "-.", "^"), "ONE": (ORANGE, "--", "D"),
    "OKDDip-N": (SKY, "-", "v"), "OKDDip": (BLUE, "-", "o")}
OTHER_STYLES = [(RED, "-", "*"), (PURPLE, "-.", "p"), (GREEN, "--", "h"), (ORANGE, ":", "<"), (SKY, "--", ">"),
                (BLACK, "--", "8"), (YELLOW, "-.", "d"), (RED, ":", "X")]
ROWS = {  # of a group's learning curves: what it is called, colour, line
    "stu_": ("leader", BLUE, "-"), "mean_": ("mean of the students", ORANGE, "--"), "": ("ensemble", GREEN, "-."),
    "gate_": ("gated ensemble", PURPLE, (0, (1, 1)))}
PAPER = {"font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "legend.frameon": False,
         "lines.linewidth": 1.4, "lines.markersize": 4, "figure.dpi": 160, "figure.constrained_layout.use": True}

Picture = tuple[str, bytes]  # what it shows, PNG


def draw_all(groups: list[Group]) -> dict[str, Picture]:
    """Every figure that these groups have the figures for, by file name."""
    pictures: dict[str, Picture] = {}

    def add(kind: str, flags: dict, title: str, figure: Figure | None) -> None:
        if figure is not None:
            name = stem = re.sub(r"[^\w.+-]", "_", f"{kind}_{flags['dataset']}_{flags['model']}")
            while name in pictures:  # another recipe of the same
                name = f"{stem}_{len(pictures)}"
            pictures[name] = (f"{title}: {title_of(flags['model'])}, {flags['dataset']}, {recipe_in_words(flags)}",
                              png(figure))

    with rc_context(PAPER):
        for same in by(groups, (*RECIPE, *DATA, "model")):
            same = sorted(same, key=order)
            flags = same[0].flags
            sizes = {(g.flags["method"], g.flags.get("num_branches", 4)) for g in same}
            four = [g for g in same if g.flags.get("num_branches", 4) == 4 or (g.flags["method"], 4) not in sizes]
            add("curves", flags, "Learning curves", learning_curves(four))
            add("diversity", flags, "Diversity (the paper's Figure 4)", diversity(four))
            add("group_size", flags, "Error against group size (the paper's Figure 3)", group_size(same))
            for g in four:
                method = g.flags["method"]
                add(f"attention_{method}", flags, f"Attention of {METHODS.get(method, method)}", attention(g))
    return pictures


def order(g: Group) -> tuple:
    """Methods in the order of the tables, then by size."""
    method = g.flags["method"]
    return (list(METHODS).index(method) if method in METHODS else len(METHODS), method, g.flags.get("num_branches", 4))


def labels_of(groups: list[Group]) -> list[str]:
    """A name for each group: its method, and the flags in which it differs from another of the same method."""
    names = []
    for g in groups:
        twins = [other for other in groups if other.flags["method"] == g.flags["method"]]
        differing = sorted(name for name in g.flags if name not in CELL
                           and any(other.flags.get(name) != g.flags[name] for other in twins))
        text = ", ".join(f"{name} {g.flags[name]}" for name in differing)
        names.append(METHODS.get(g.flags["method"], g.flags["method"]) + (f" ({text})" if text else ""))
    return names


def styles_of(groups: list[Group]) -> list[tuple]:
    """Colour, line and marker of each group; two of the same method do not share them."""
    others = iter(OTHER_STYLES * len(groups))
    seen = set()
    styles = []
    for g in groups:
        method = g.flags["method"]
        styles.append(STYLES[method] if method in STYLES and method not in seen else next(others))
        seen.add(method)
    return styles


def curve(g: Group, name: str, error: bool = False) -> np.ndarray:
    """A figure of every run and epoch, [seeds, epochs]; error: 100 minus an accuracy."""
    values = np.array([[record[name] for record in run.history] for run in g.runs])
    return 100 - values if error else values


def band(ax: Axes, x: Iterable, values: np.ndarray, colour: str, line: object, label: str, marker: str = "") -> None:
    """The mean over seeds of values [seeds, len(x)]; where there are several, within a standard deviation's band."""
    mean = values.mean(0)
    marker = marker or ("." if len(mean) == 1 else "")  # a line through one point is nothing
    ax.plot(x, mean, color=colour, linestyle=line, marker=marker, label=label, markevery=max(1, len(mean) // 12))
    if len(values) > 1:
        deviation = values.std(0, ddof=1)
        ax.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)


def epochs_of(g: Group) -> range:
    """1, 2, ... as the axis shows them."""
    return range(1, g.flags["num_epochs"] + 1)


# --- figures ----------------------------------------------------------------------------------------------------------


def learning_curves(groups: list[Group]) -> Figure:
    """A panel for each method: test error of leader, each peer, their mean and their ensemble over the epochs."""
    columns = min(4, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(2.1 * columns + 0.6, 2.0 * rows + 0.8))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for ax, g, label in zip(axes.flat, groups, labels_of(groups), strict=False):
        draw_group(ax, g)
        ax.set_title(f"{label}, {len(g.runs)} seed{'s' * (len(g.runs) > 1)}")
    for ax in axes.flat[len(groups):]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("test error, %")
    for ax in axes.flat[max(0, len(groups) - columns):len(groups)]:
        ax.set_xlabel("epoch")
        ax.tick_params(labelbottom=True)
    lines = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fitting = int(figure.get_figwidth() / 1.6)  # inches that the longest of these names takes
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(fitting, len(lines)))
    return figure


def draw_group(ax: Axes, g: Group) -> None:
    """A panel's lines."""
    names = g.runs[0].history[-1]
    if "mean_test_accTop1" not in names:
        band(ax, epochs_of(g), curve(g, "test_accTop1", error=True), BLACK, "-", "network")
        return
    students = [name for name in names if re.fullmatch(r"stu\d+test_accTop1", name)]
    for i, name in enumerate(students):
        ax.plot(epochs_of(g), curve(g, name, error=True).mean(0), color="#777777", linewidth=0.6, zorder=1.5,
                label="each student" if i == 0 else None)
    for row, (label, colour, line) in ROWS.items():
        if f"{row}test_accTop1" in names:
            band(ax, epochs_of(g), curve(g, f"{row}test_accTop1", error=True), colour, line, label)


def diversity(groups: list[Group]) -> Figure | None:
    """Distance between two peers' outputs over the epochs, a line for each method."""
    groups = [g for g in groups if all("dist" in record for run in g.runs for record in run.history)]
    if not groups:
        return None
    figure = Figure(figsize=(4.6, 3.2))
    ax = figure.subplots()
    for g, label, (colour, line, marker) in zip(groups, labels_of(groups), styles_of(groups), strict=True):
        band(ax, epochs_of(g), curve(g, "dist"), colour, line, label, marker)
    ax.set(xlabel="epoch", ylabel="diversity", ylim=(0, None))
    figure.legend(loc="outside right upper")
    return figure


def group_size(groups: list[Group]) -> Figure | None:
    """Error at the best epoch against the number of students, a line for each method that has several."""
    figure = Figure(figsize=(4.6, 3.2))
    ax = figure.subplots()
    others = {name for g in groups for name in g.flags} - {"num_branches"}
    families = [family for family in by(groups, others) if len(family) > 1]
    first = [family[0] for family in families]
    for family, label, (colour, line, marker) in zip(families, labels_of(first), styles_of(first), strict=True):
        family = sorted(family, key=lambda g: g.flags["num_branches"])
        errors = [[run.error("best", run.measured)[0] for run in g.runs] for g in family]
        deviation = [np.std(e, ddof=1) if len(e) > 1 else 0 for e in errors]
        ax.errorbar([g.flags["num_branches"] for g in family], [np.mean(e) for e in errors], deviation,
                    color=colour, linestyle=line, marker=marker, label=label, capsize=2)
    if not families:
        return None
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="number of students", ylabel="test error, %")
    figure.legend(loc="outside right upper")
    return figure


def attention(g: Group, shown: int = 5) -> Figure | None:
    """The attention matrix, its mean over the test images, at some epochs of the first seed; and over all epochs and
    seeds, how much a peer attends to itself."""
    if not all(record.get("attention") for run in g.runs for record in run.history):
        return None
    last = g.flags["num_epochs"]
    chosen = sorted({round(1 + i * (last - 1) / max(1, shown - 1)) for i in range(shown)})
    figure = Figure(figsize=(1.45 * len(chosen) + 3.0, 2.2))
    axes = figure.subplots(1, len(chosen) + 1, width_ratios=[1] * len(chosen) + [1.7])
    for ax, epoch in zip(axes, chosen, strict=False):
        matrix = np.array(g.runs[0].history[epoch - 1]["attention"])
        ax.imshow(matrix, cmap="cividis", vmin=0, vmax=1)
        if len(matrix) <= 4:
            for (a, b), value in np.ndenumerate(matrix):
                ax.text(b, a, f"{value:.2f}", ha="center", va="center", fontsize=8,
                        color="white" if value < 0.6 else "black")
        seed = f", seed {g.seeds[0]}" if ax is axes[0] else ""
        ax.set(title=f"epoch {epoch}{seed}", xticks=range(len(matrix)), yticks=range(len(matrix)), xlabel="peer b")
        ax.grid(False)
    axes[0].set_ylabel("peer a")
    diagonal = np.array([[np.trace(record["attention"]) / len(record["attention"]) for record in run.history]
                         for run in g.runs])
    band(axes[-1], epochs_of(g), diagonal, BLUE, "-", "itself", "o")
    axes[-1].axhline(1 / len(matrix), color=BLACK, linestyle=":", linewidth=1, label="uniform")
    axes[-1].legend(loc="upper left", ncols=2, fontsize=7)
    axes[-1].set(title="weight of a peer for itself", xlabel="epoch", ylim=(0, 1.15))
    return figure


def png(figure: Figure) -> bytes:
    """A figure as a file's content."""
    FigureCanvasAgg(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
