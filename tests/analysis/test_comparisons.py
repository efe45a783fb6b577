"""Differences between methods: the statistics, who is compared with whom, and what is printed."""

import json
import math
import random
from statistics import fmean, stdev

import made_up
import pytest
import slow
from scipy import stats

from analysis import comparisons

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


def by_the_formula(own, other):
    """-> the mean difference, its 95 % interval and p: Student's t with n - 1 degrees of freedom."""
    minus = [a - b for a, b in zip(own, other, strict=True)]
    mean, error, degrees = fmean(minus), stdev(minus) / math.sqrt(len(minus)), len(minus) - 1
    width = stats.t.ppf(0.975, degrees) * error
    return pytest.approx([mean, mean - width, mean + width, 2 * stats.t.sf(abs(mean) / error, degrees)], rel=1e-9)


def statistics(line):
    return [line[name] for name in ("mean", "low", "high", "p")]


@pytest.mark.parametrize("n", [2, 5])
def test_interval_and_p_are_those_of_the_formula(tmp_path, tables, n):
    write(tmp_path, "Ind", IND[:n])
    write(tmp_path, "OKDDip", OURS[:n])
    line = tables(tmp_path)["ResNet-32", "Ind"]["OKDDip-B"]
    assert statistics(line) == by_the_formula(OURS[:n], IND[:n]) and line["seeds"] == list(range(line["n"]))
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


@pytest.mark.parametrize(("own", "result"), [
    ([30.0], "one seed: no interval"), ([31.2, 30.9, 31.8], "the same for each seed: no interval"),
    ([30.1, 29.8, 30.7], "the same for each seed: no interval")])  # where rounding makes them differ in the last bit
def test_without_an_interval(tmp_path, tables, own, result):
    write(tmp_path, "Ind", IND)
    write(tmp_path, "ONE", own)
    line = tables(tmp_path)["ResNet-32", "Ind"]["ONE"]
    assert line["mean"] == pytest.approx(own[0] - IND[0]) and line["result"] == result
    assert [line[name] for name in ("low", "high", "p", "p_holm")] == [None] * 4


def test_ensembles_and_diversity_are_compared_too(tmp_path, tables):
    """Of the last epoch, and only where they exist. A single network has neither; older groups had no diversity."""
    values = {"Ind": [(70.0, 0.10), (71.0, 0.12), (72.5, 0.11)], "OKDDip": [(72.0, 0.20), (72.5, 0.21), (74.0, 0.215)]}
    for method, seeds in values.items():
        for seed, (ensemble, diversity) in enumerate(seeds):
            last = {"mean_test_accTop1": 60.0, "test_accTop1": ensemble, "dist": diversity}
            made_up.run(tmp_path, method, seed, [last | {"dist": 0.5, "test_accTop1": 99.0}, last], output="mean_")
    write(tmp_path, "baseline", IND[:3])
    write(tmp_path, "ONE", IND[:3])
    for file in tmp_path.glob("ONE*/metrics.jsonl"):
        file.write_text(file.read_text().replace(', "dist": 0.25', ""))
    assert list(tables(tmp_path)["ResNet-32", "Ind"]) == ["Baseline", "ONE", "OKDDip-B"]
    for i, (measure, result, others) in enumerate([("ensemble error", "significantly lower", ["ONE"]),
                                                   ("diversity", "significantly higher", [])]):
        found = tables(tmp_path, measure)
        assert {place: list(lines) for place, lines in found.items()} == {
            ("ResNet-32", "Ind"): [*others, "OKDDip-B"]}
        own, other = ([100 - pair[0] if i == 0 else pair[1] for pair in values[m]] for m in ("OKDDip", "Ind"))
        line = found["ResNet-32", "Ind"]["OKDDip-B"]
        assert statistics(line) == by_the_formula(own, other) and line["result"] == result


def test_the_number_of_processes_is_named_if_it_differs(tmp_path, tables):
    """Each has its own BatchNorm statistics."""
    for method, processes in (("Ind", 1), ("DML", 4)):
        write(tmp_path, method, IND, environment={"processes": processes})
    assert {(reference, *lines) for (_, reference), lines in tables(tmp_path).items()} == {("Ind", "DML (processes 4)")}


def test_dropout_that_differs_between_methods_is_named(tmp_path, tables):
    for method, dropout in (("Ind", 0.5), ("DML", 0.0), ("baseline", 0.0)):
        write(tmp_path, method, IND, model="vgg16", dropout=dropout)
    assert {(reference, *lines) for (_, reference), lines in tables(tmp_path).items()} == {
        ("Ind (dropout 0.5)", "Baseline", "DML"), ("Baseline", "Ind (dropout 0.5)", "DML")}


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

    A single network is compared with groups of every size. A variant is also compared with its method.
    """
    for method in ("baseline", "Ind", "OKDDip", "OKDDip+KD", "OKDDip-others"):
        write(tmp_path, method, [30.0])
    write(tmp_path / "data", "DML", [30.0], dataset="CIFAR10")
    write(tmp_path / "recipe", "DML", [30.0], wd=1e-4)
    write(tmp_path / "network", "DML", [30.0], model="resnet20")
    write(tmp_path / "network", "Ind", [30.0], model="resnet20")
    write(tmp_path / "size", "DML", [30.0], num_branches=3)
    write(tmp_path / "dropout", "Ind", [30.0], dropout=0.5)
    found = {place: list(lines) for place, lines in tables(tmp_path).items()}
    both, ours = ["Ind (dropout 0.0)", "Ind (dropout 0.5)"], ["OKDDip-B", "OKDDip+KD", "OKDDip-others"]
    assert found == {
        ("ResNet-32", "Baseline"): [*both, *ours], ("ResNet-32", both[0]): ["Baseline", both[1], *ours],
        ("ResNet-32", both[1]): ["Baseline", both[0], *ours], ("ResNet-32", "OKDDip-B"): ours[1:],
        ("ResNet-20", "Ind"): ["DML"], ("ResNet-32, 3 students", "Baseline"): ["DML"]}


def test_holm_rejects_what_the_procedure_rejects():
    draw = random.Random(0)
    for k in range(200):
        p = [draw.choice([draw.random(), draw.random() / 20, 0.01]) for _ in range(1 + k % 9)]  # with equal ones
        adjusted = comparisons.holm(p)
        assert all(0 <= own <= value <= 1 for own, value in zip(p, adjusted, strict=True))
        for level in (0.01, 0.05, 0.1, 0.3, 0.9):
            assert {i for i in range(len(p)) if adjusted[i] <= level} == slow.rejected_by_holm(p, level)


def test_results_in_words(tables, tmp_path):
    """One method is clearly better, one clearly worse, one unclear, one a little better, and one has a single seed."""
    write(tmp_path, "Ind", IND)
    write(tmp_path, "OKDDip", [error - 3 + i / 20 for i, error in enumerate(IND)])
    write(tmp_path, "ONE", [error + 3 + i / 20 for i, error in enumerate(IND)])
    write(tmp_path, "DML", [error + (-1) ** i for i, error in enumerate(IND)])
    write(tmp_path, "CL-ILR", [error + d for error, d in zip(IND, (-0.1, -0.7, -0.4, -1.0, -0.2), strict=True)])
    write(tmp_path, "KDCL", IND[:1])
    lines = tables(tmp_path)["ResNet-32", "Ind"]
    assert {name: line["result"] for name, line in lines.items()} == {
        "OKDDip-B": "significantly lower", "ONE": "significantly higher", "DML": "not significant",
        "CL-ILR": "significantly lower, but not after Holm's correction", "KDCL (mean)": "one seed: no interval"}
    tested = [line for line in lines.values() if line["n"] > 1]
    assert [line["p_holm"] for line in tested] == pytest.approx(comparisons.holm([line["p"] for line in tested]))


def line_of(name, low, high, p_holm=0.5):
    line = {"name": name, "n": 3, "mean": (low + high) / 2, "low": low, "high": high, "p": 0.01, "p_holm": p_holm}
    return line | {"result": comparisons.in_words(line)}


@pytest.mark.parametrize(("lines", "said"), [
    ([line_of("A", -1, 1), line_of("B", 0, 1)], "No difference is significant: every 95 % interval contains 0."),
    ([line_of("A", -1, 0)], "The difference of A is not significant (-0.50 points, 95 % interval -1.00 to +0.00)."),
    ([line_of("A", 1, 2)], "Over 3 seeds A has a significantly higher error than Ind (+1.50 points, 95 % interval "
                           "+1.00 to +2.00), but not after Holm's correction."),
    ([line_of("A", -2, -1, 0.05), line_of("B", -2, -1, 0.04), line_of("C", -3, -1, 0.01)],
     "A, B and C have a significantly lower error than Ind, also after Holm's correction."),
    ([{"name": "A", "n": 0, "low": None, "p": None, "result": "no common seed"}],
     "No test is possible for A (no common seed).")])
def test_sentences(lines, said):
    assert comparisons.summary({"measure": "error", "reference": "Ind", "lines": lines}) == said
