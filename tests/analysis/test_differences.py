"""Differences between methods: the statistics, who is compared with whom, and what is printed."""

import csv
import io
import json
import random

import made_up
import pytest
import slow
from scipy.stats import ttest_rel

from analysis import differences

IND, OURS = [31.2, 30.9, 31.8, 31.1, 30.7], [30.1, 30.3, 30.2, 30.6, 30.0]


def write(root, method, errors, seeds=None, **flags):
    """A run for each error: of the last epoch; the best epoch is a better one."""
    for seed, error in zip(seeds or range(len(errors)), errors, strict=True):
        made_up.run(root, method, seed, [10.0, error], **flags)


@pytest.fixture
def tables(printed):
    """tables(folder, measure) -> (network, reference) -> method -> its line, as report.py --json prints it."""
    def read(folder, measure="error"):
        def no_constant(name):
            raise ValueError(f"{name} is not JSON")

        everything = json.loads(printed(folder, "--json"), parse_constant=no_constant)
        return {(table["network"], table["reference"]): {line["name"]: line for line in table["lines"]}
                for section in everything["sections"] for table in section["differences"]
                if table["measure"] == measure}

    return read


@pytest.mark.parametrize("n", [2, 3, 5])
def test_interval_and_p_are_those_of_scipy_and_of_the_formula(tmp_path, tables, n):
    write(tmp_path, "Ind", IND[:n])
    write(tmp_path, "OKDDip", OURS[:n])
    line = tables(tmp_path)["ResNet-32", "Ind"]["OKDDip-B"]
    test = ttest_rel(OURS[:n], IND[:n])
    interval = test.confidence_interval(0.95)
    found = [line[name] for name in ("mean", "low", "high", "p")]
    assert found[1:] == pytest.approx([interval.low, interval.high, test.pvalue], rel=1e-9)
    assert found == pytest.approx(slow.paired_differences(OURS[:n], IND[:n]), rel=1e-6)
    assert line["n"] == n and line["seeds"] == list(range(n))
    assert line["value"] - line["reference_value"] == pytest.approx(line["mean"])


def test_only_common_seeds_count(tmp_path, tables):
    """In any order of the runs, each error is compared with that of the same seed."""
    write(tmp_path, "Ind", [20.0, *IND], seeds=[9, 0, 1, 2, 3, 4])
    write(tmp_path, "ONE", [*OURS[::-1], 99.0], seeds=[4, 3, 2, 1, 0, 8])
    write(tmp_path, "DML", [30.0], seeds=[7])
    lines = tables(tmp_path)["ResNet-32", "Ind"]
    assert lines["ONE"]["mean"] == pytest.approx(sum(OURS) / 5 - sum(IND) / 5) and lines["ONE"]["n"] == 5
    assert lines["ONE"]["value"] == pytest.approx(sum(OURS) / 5)
    assert lines["DML"] == {"name": "DML", "n": 0, "seeds": [], "result": "no common seed"} | dict.fromkeys(
        ("value", "reference_value", "mean", "low", "high", "p", "p_holm"))


def test_one_seed_has_no_interval(tmp_path, tables, printed):
    write(tmp_path, "Ind", IND)
    write(tmp_path, "ONE", [30.0])
    line = tables(tmp_path)["ResNet-32", "Ind"]["ONE"]
    assert line["mean"] == pytest.approx(-1.2) and line["result"] == "one seed: no interval"
    assert [line[name] for name in ("low", "high", "p", "p_holm")] == [None] * 4
    assert row(printed(tmp_path), "ONE")[1:] == ["one seed: no interval", "1", "30.00", "31.20", "-1.20", *"–––"]


@pytest.mark.parametrize("shift", [0.0, -1.1])
def test_equal_differences_have_no_interval(tmp_path, tables, shift):
    """Not even where rounding makes them differ in the last bit."""
    errors = [30.12, 31.57, 28.91]
    write(tmp_path, "Ind", errors)
    write(tmp_path, "ONE", [error + shift for error in errors])
    line = tables(tmp_path)["ResNet-32", "Ind"]["ONE"]
    assert line["mean"] == pytest.approx(shift) and line["low"] is line["high"] is line["p"] is None
    assert line["result"] == "the same for each seed: no interval"


def test_the_last_epoch_of_the_methods_own_output_is_compared(tmp_path, tables):
    write(tmp_path, "Ind", [30.0, 31.0])
    for seed in (0, 1):
        last = {"stu_test_accTop1": 71.0, "mean_test_accTop1": 90.0, "test_accTop1": 95.0}
        made_up.run(tmp_path, "OKDDip", seed, [last | {"stu_test_accTop1": 99.0}, last])
    assert tables(tmp_path)["ResNet-32", "Ind"]["OKDDip-B"]["mean"] == pytest.approx(29 - 30.5)


def test_ensembles_and_diversity_are_compared_too(tmp_path, tables, printed):
    """Of the last epoch, and only where they exist. A single network has neither."""
    values = {"Ind": [(70.0, 0.10), (71.0, 0.12), (72.5, 0.11)], "OKDDip": [(72.0, 0.20), (72.5, 0.21), (74.0, 0.215)],
              "OKDDip-mean": [(71.0, 0.05), (72.5, 0.21), (73.0, 0.1)]}
    for method, seeds in values.items():
        for seed, (ensemble, diversity) in enumerate(seeds):
            last = {"mean_test_accTop1": 60.0, "test_accTop1": ensemble, "dist": diversity}
            made_up.run(tmp_path, method, seed, [last | {"dist": 0.5, "test_accTop1": 99.0}, last], output="mean_")
    for seed in range(3):
        only_errors = [{"test_accTop1": 60.0 + seed}] * 2
        made_up.run(tmp_path, "baseline", seed, only_errors)
    for i, (measure, direction) in enumerate([("ensemble error", "lower"), ("diversity", "higher")]):
        found = tables(tmp_path, measure)
        assert list(found) == [("ResNet-32", "Ind"), ("ResNet-32", "OKDDip-B")]
        own, other = ([100 - pair[0] if i == 0 else pair[1] for pair in values[m]] for m in ("OKDDip", "Ind"))
        line = found["ResNet-32", "Ind"]["OKDDip-B"]
        assert [line[name] for name in ("mean", "low", "high", "p")] == pytest.approx(
            slow.paired_differences(own, other), rel=1e-6)
        assert line["result"] == f"{direction} {measure}"
        cells, digits = row(printed(tmp_path), "OKDDip-B", f"### Differences of the last epoch's {measure}"), 2 + i
        numbers = f"{sum(own) / 3:.{digits}f} {sum(other) / 3:.{digits}f} {line['mean']:+.{digits}f}"
        assert cells[3:6] == numbers.split()
    assert "Baseline" in tables(tmp_path)["ResNet-32", "Ind"]


def test_groups_without_a_diversity_are_compared_by_the_other_measures(tmp_path, tables):
    for method in ("Ind", "ONE", "DML"):
        write(tmp_path, method, IND)
    for file in tmp_path.glob("ONE*/metrics.jsonl"):
        file.write_text(file.read_text().replace(', "dist": 0.25', ""))
    assert [list(tables(tmp_path, measure)["ResNet-32", "Ind"]) for measure in differences.MEASURES] == [
        ["DML", "ONE"], ["DML", "ONE"], ["DML"]]


def test_two_single_networks_are_compared_once(tmp_path, tables):
    """Groups of each size are compared with both; the networks with each other only beside groups of four."""
    for method in ("baseline", "KD"):
        write(tmp_path, method, [30.0])
    assert {place: list(lines) for place, lines in tables(tmp_path).items()} == {("ResNet-32", "Baseline"): ["KD"]}
    write(tmp_path, "Ind", [30.0], num_branches=3)
    write(tmp_path, "Ind", [30.0])
    assert {place: list(lines) for place, lines in tables(tmp_path).items()} == {
        ("ResNet-32", "Ind"): ["Baseline", "KD"], ("ResNet-32", "Baseline"): ["KD", "Ind"],
        ("ResNet-32, 3 students", "Ind"): ["Baseline", "KD"], ("ResNet-32, 3 students", "Baseline"): ["Ind"]}


def test_who_is_compared_with_whom(tmp_path, tables):
    """Groups of the same network, data, recipe and number of students; with each group of a reference.

    A single network is compared with groups of every size.
    """
    for method in ("baseline", "Ind", "ONE"):
        write(tmp_path, method, [30.0])
    write(tmp_path / "data", "DML", [30.0], dataset="CIFAR10")
    write(tmp_path / "recipe", "DML", [30.0], wd=1e-4)
    write(tmp_path / "network", "DML", [30.0], model="resnet20")
    write(tmp_path / "network", "Ind", [30.0], model="resnet20")
    write(tmp_path / "size", "DML", [30.0], num_branches=3)
    write(tmp_path / "dropout", "Ind", [30.0], dropout=0.5)
    found = {place: list(lines) for place, lines in tables(tmp_path).items()}
    both = ["Ind (dropout 0.0)", "Ind (dropout 0.5)"]
    assert found == {("ResNet-32", "Baseline"): [*both, "ONE"], ("ResNet-32", both[0]): ["Baseline", both[1], "ONE"],
                     ("ResNet-32", both[1]): ["Baseline", both[0], "ONE"], ("ResNet-20", "Ind"): ["DML"],
                     ("ResNet-32, 3 students", "Baseline"): ["DML"]}


def test_a_variant_is_also_compared_with_its_method(tmp_path, tables):
    for method in ("Ind", "ONE", "OKDDip", "OKDDip-others", "OKDDip-no_leader+KD", "OKDDip-N", "OKDDip-N-others"):
        write(tmp_path, method, [30.0])
    found = {reference: list(lines) for (_, reference), lines in tables(tmp_path).items()}
    assert len(found.pop("Ind")) == 6
    assert found == {"OKDDip-B": ["OKDDip-no_leader+KD", "OKDDip-others"], "OKDDip-N": ["OKDDip-N-others"]}


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_holm_rejects_what_the_procedure_rejects(k):
    draw = random.Random(k)
    for _ in range(50):
        p = [draw.choice([draw.random(), draw.random() / 20, 0.01]) for _ in range(k)]  # with equal ones
        adjusted = differences.holm(p)
        assert all(0 <= own <= value <= 1 for own, value in zip(p, adjusted, strict=True))
        for level in (0.01, 0.05, 0.1, 0.3, 0.9):
            assert {i for i in range(k) if adjusted[i] <= level} == slow.rejected_by_holm(p, level)


@pytest.fixture
def several(tmp_path):
    """Individual branches and four methods: one clearly better, one clearly worse, one unclear, one a little better."""
    write(tmp_path, "Ind", IND)
    write(tmp_path, "OKDDip", [error - 3 + i / 20 for i, error in enumerate(IND)])
    write(tmp_path, "ONE", [error + 3 + i / 20 for i, error in enumerate(IND)])
    write(tmp_path, "DML", [error + (-1) ** i for i, error in enumerate(IND)])
    write(tmp_path, "CL-ILR", [error + d for error, d in zip(IND, (-0.1, -0.7, -0.4, -1.0, -0.2), strict=True)])
    return tmp_path


def test_what_a_line_says(several, tables):
    lines = tables(several)["ResNet-32", "Ind"]
    assert {name: line["result"] for name, line in lines.items()} == {
        "OKDDip-B": "lower error", "ONE": "higher error", "DML": "no difference shown",
        "CL-ILR": "lower error, but not after Holm's correction"}
    assert [lines[name]["p_holm"] for name in lines] == pytest.approx(
        differences.holm([lines[name]["p"] for name in lines]))
    for line in lines.values():
        assert (line["low"] <= 0 <= line["high"]) == (line["p"] > 0.05) == (line["result"] == "no difference shown")


def row(text, name, heading="### Differences"):
    """The cells of a method's line in the first Markdown table after a heading."""
    line = next(line for line in text[text.index(heading):].splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown_html_csv_and_json_hold_the_same(several, tables, printed, tmp_path):
    text = printed(several, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    lines = csv.DictReader(io.StringIO(printed(several, "--csv")))
    in_csv = {line["column"]: line for line in lines if line["measure"] == "error"}
    for name, line in tables(several)["ResNet-32", "Ind"].items():
        cells = [name, line["result"], "5", f"{line['value']:.2f}", f"{line['reference_value']:.2f}",
                 f"{line['mean']:+.2f}", f"{line['low']:+.2f} to {line['high']:+.2f}",
                 *("< 0.001" if line[p] < 0.001 else f"{line[p]:.3f}" for p in ("p", "p_holm"))]
        assert row(text, name) == cells
        escaped = [cell.replace("<", "&lt;").replace("'", "&#39;") for cell in cells]
        assert "".join(f"<td>{cell}</td>" for cell in escaped) in page
        numbers = ("n", "value", "reference_value", "low", "high", "p", "p_holm")
        assert [float(in_csv[name][key]) for key in numbers] == pytest.approx([line[key] for key in numbers])
        assert float(in_csv[name]["minus_reference"]) == pytest.approx(line["mean"])
        assert in_csv[name]["table"] == "differences"
        assert [in_csv[name][key] for key in ("reference", "result", "seeds")] == ["Ind", line["result"], "0 1 2 3 4"]
