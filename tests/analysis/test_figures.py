"""Which figures there are, what they show, and the page that holds them."""

import base64
import io
import re

import made_up
import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

import report
from analysis import figures, records
from methods import METHODS
from training.outputs import metric


@pytest.fixture
def runs(tmp_path):
    """OKDDip with three and four students, ONE and a baseline, two seeds each."""
    for seed in (0, 1):
        epochs = [{"stu_test_accTop1": 60.0 + e + seed, "stu0test_accTop1": 58.0, "stu1test_accTop1": 59.0,
                   "dist": 0.3 - e / 100, "attention": [[0.5 + e / 10, 0.5 - e / 10], [0.5, 0.5]]} for e in range(5)]
        made_up.run(tmp_path, "OKDDip", seed, epochs)
        made_up.run(tmp_path, "OKDDip", seed, [*epochs[:4], epochs[0]], num_branches=3)
        made_up.run(tmp_path, "ONE", seed, [50.0, 45.0, 40.0, 40.0, 40.0])
        made_up.run(tmp_path, "baseline", seed, [50.0, 45.0, 40.0, 40.0, 40.0])
    return tmp_path


@pytest.fixture
def groups(runs):
    """Their groups: (method, number of students) -> the rows."""
    return {(records.flags_of(group)["method"], records.size_of(group)): group
            for group in records.split(records.table_of_runs(records.find_runs([runs])[0])[0])}


def lines(ax):
    return {line.get_label(): line.get_ydata() for line in ax.get_lines()}


def points(ax):
    return [bars.lines[0].get_xydata() for bars in ax.containers]


def test_the_numbers_of_curves_diversity_and_group_size(groups):
    """Means over seeds. Curves: each output's error, in a band of one standard deviation."""
    baseline, ours, *_ = figures.learning_curves([groups["baseline", 4], groups["OKDDip", 4]]).axes
    assert lines(baseline) == {"network": pytest.approx([50, 45, 40, 40, 40])} and "Baseline" in baseline.get_title()
    assert lines(ours)["leader or deployed network"] == pytest.approx([39.5, 38.5, 37.5, 36.5, 35.5])
    assert lines(ours)["each student"] == pytest.approx([42] * 5) and lines(ours)["ensemble"] == pytest.approx([40] * 5)
    lowest = min(band.get_paths()[0].vertices[:, 1].min() for band in ours.collections)
    assert lowest == pytest.approx(35.5 - 0.5**0.5)
    diversity, itself, against = figures.diversity([groups["ONE", 4], groups["OKDDip", 4]]).axes
    assert lines(diversity)["ONE"] == pytest.approx([0.25] * 5)
    assert lines(itself) == {"OKDDip-B": pytest.approx([0.5 + e / 20 for e in range(5)])}
    assert np.concatenate(points(against)) == pytest.approx(np.array([[0.25, 40], [0.26, 35.5]]))  # of the last epoch
    x_bar, y_bar = (part.get_segments()[0] for part in against.containers[1].lines[2])
    assert np.ptp(x_bar[:, 0]) == pytest.approx(0) and np.ptp(y_bar[:, 1]) == pytest.approx(2 * 0.5**0.5)
    (ax,) = figures.group_size([*groups.values()]).axes
    heights = [np.ptp(bar[:, 1]) for bar in ax.containers[0].lines[2][0].get_segments()]
    assert heights == pytest.approx([2 * 0.5**0.5] * 2)
    assert np.concatenate(points(ax)) == pytest.approx(np.array([[3, 36.5], [4, 35.5]]))  # the best epoch of each
    assert figures.group_size([groups["OKDDip", 4], groups["ONE", 4]]) is None
    assert figures.diversity([groups["baseline", 4]]) is None
    assert figures.learning_curves([groups["OKDDip", 3]]).axes[0].get_title() == "OKDDip-B, 3 students, 2 seeds"


@pytest.mark.parametrize("panels", [1, 3, 5])
def test_the_legend_lies_within_the_figure(groups, panels):
    """With every output that has a line."""
    group = groups["OKDDip", 4]
    for record in (record for history in group["history"] for record in history):
        record |= {metric(output, "test", "accTop1"): 50.0 for output in figures.OUTPUTS}
    with rc_context(figures.LAYOUT):
        drawn = figures.learning_curves([group] * panels)
        FigureCanvasAgg(drawn).draw()
    (legend,) = drawn.legends
    box, whole = legend.get_window_extent(), drawn.bbox
    assert len(legend.get_texts()) == len(figures.OUTPUTS) + 1
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
    assert all(ax.get_window_extent().height > 0.2 * whole.height for ax in drawn.axes[:panels])


def test_differences(runs, groups):
    """A panel for each reference and number of students with two intervals."""
    for seed in (0, 1):
        made_up.run(runs, "Ind", seed, [50.0, 45.0, 40.0, 40.0, 41.0 - seed])
        made_up.run(runs, "DML", seed, [50.0, 45.0, 40.0, 40.0, 40.0 + seed])
    made_up.run(runs, "KDCL", 0, [50.0, 45.0, 40.0, 40.0, 41.0])
    (ax, other) = figures.differences(records.table_of_runs(records.find_runs([runs])[0])[0]).axes
    assert [ax.get_title(), other.get_title()] == ["ResNet-32, compared with Ind", "ResNet-32, compared with Baseline"]
    assert [text.get_text() for text in other.get_yticklabels()] == [
        f"{name}, 2 seeds" for name in ("Ind", "DML", "OKDDip-B")]
    assert [point[0, 0] for point in points(other)] == pytest.approx([0.5, 0.5, -4.5])
    assert figures.differences(groups["ONE", 4]) is None


def test_files_and_page(runs, tmp_path):
    report.main([str(runs), "--html", str(tmp_path / "page.html"), "--figures", str(tmp_path / "figures")])
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    kinds = ("curves", "diversity", "group_size")
    assert names == {f"{kind}_CIFAR100_resnet32.png" for kind in kinds}
    page = (tmp_path / "page.html").read_text()
    embedded = [base64.b64decode(code) for code in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    assert set(embedded) == {path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    for image in embedded:
        pixels = imread(io.BytesIO(image))
        assert min(pixels.shape[:2]) > 200 and pixels[..., :3].std() > 0.02
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page
    assert "<td>35.50 ± 0.71</td>" in page and "<title>Test error of Baseline, ONE and OKDDip\u2011B: " in page
    order = re.findall(r"(?:<h3>|<figcaption>.*?: )(Table 2|Figure 3|Differences|learning|diversity|error)", page)
    assert order == ["Table 2", "learning", "diversity", "Figure 3", "error", "Differences"]


def test_figures_do_not_replace_each_other(tmp_path):
    """Two recipes of the same network; and a network whose name cannot be a file's name."""
    for wd in (1e-4, 5e-4):
        made_up.run(tmp_path / str(wd), "baseline", 0, [50.0], model="my net", wd=wd)
    runs = [run._replace(flags=run.flags | {"model": "../my net"}) for run in records.find_runs([tmp_path])[0]]
    drawn = figures.draw_all(records.table_of_runs(runs)[0])
    assert len(drawn) == 2 and len({figure.place for figure in drawn.values()}) == 2
    assert all(re.fullmatch(r"[\w.+-]+", name) for name in drawn)


def test_a_method_looks_the_same_in_every_figure_and_no_two_look_alike():
    methods = [*METHODS, "CL", "OKDDip+KD", "OKDDip-no_leader",
               *(f"OKDDip-{a}" for a in ("mean", "random", "entropy", "symmetric"))]
    styles = figures.styles_of(methods)
    assert len({style[1:] for style in styles}) == len(methods)  # in grey, too
    alone, *others = (figures.styles_of(methods) for methods in (
        ["OKDDip"], ["baseline", "CL", "OKDDip"], ["new", "OKDDip", "ONE", "OKDDip"]))
    assert [styles[i] for styles, i in zip(others, (2, 1), strict=True)] == alone * 2
    assert len(set(others[1])) == 4  # a second group of the same method looks different
