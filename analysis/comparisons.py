"""Differences between methods, paired by seed: mean, 95 % confidence interval, paired t-test, Holm's correction.

They compare the error of the method's own output (the leader, the mean of the students, or the network), the error of
the ensemble, and the diversity of the peers. All are of the last epoch: no model selection.
"""

import itertools
from collections.abc import Iterable
from operator import itemgetter
from statistics import fmean

import pandas as pd
from scipy.stats import ttest_rel

from analysis.records import DATA, flags_of, labels_of, network_title, split, split_by
from methods import METHODS

REFERENCES = ("Ind", "baseline")  # all other methods are compared with them, and each variant also with its method
MEASURES = {"error": "last", "ensemble error": "ensemble_last", "diversity": "diversity"}  # -> columns of row_of
DIGITS = {"error": 2, "ensemble error": 2, "diversity": 3}  # after the point
CONFIDENCE, LEVEL = 0.95, 0.05
NOT_HOLM = ", but not after Holm's correction"
EQUAL = 1e-9  # a smaller spread of the differences is rounding


def tables_of_differences(runs: pd.DataFrame, measures: Iterable[str] = MEASURES) -> list[dict]:
    """runs of one recipe -> a table for each measure, network, data set, number of students and reference.

    Single networks have only an error. They are compared with groups of each size, and once with each other.
    """
    tables = []
    for measure in measures:
        measured = (runs if measure == "error" else runs[~single(runs)]).dropna(subset=[MEASURES[measure]])
        for same_network in split_by(measured, (*DATA, "model")):
            size_of, alone = same_network["num_branches"], single(same_network)
            sizes = sorted(set(size_of[~alone]), key=lambda size: (size != 4, size)) or [4]  # [4]: no group at all
            for size in sizes:
                same_size = same_network[alone | (size_of == size)]
                model = same_size["model"].iloc[0]
                about = {"measure": measure, "model": model, "network": network_title(model, size),
                         "data": flags_of(same_size)["data"]}
                tables += [about | table for table in against_each(same_size, measure, size == sizes[0])]
    return tables


def single(runs: pd.DataFrame) -> pd.Series:
    """Whether each run trained a single network. Its output has the name of an ensemble, but it has none."""
    return runs["flags"].map(lambda flags: "num_branches" not in flags).astype(bool)


def against_each(runs: pd.DataFrame, measure: str, pairs_of_single: bool) -> list[dict]:
    """A table for each group that others are compared with. pairs_of_single: single networks with each other, too."""
    tables, groups = [], split(runs)
    named = [(flags_of(group)["method"], label, group) for group, label in zip(groups, labels_of(groups), strict=True)]
    for method in dict.fromkeys([*REFERENCES, *METHODS]):
        for title, reference in [(label, group) for name, label, group in named if name == method]:
            lines = [{"name": label, **compare(group, reference, MEASURES[measure])} for name, label, group in named
                     if group is not reference and (method in REFERENCES or variant_of(name) == method)
                     and (pairs_of_single or any("num_branches" in flags_of(g) for g in (group, reference)))]
            tables += [{"reference": title, "lines": corrected(lines)}] if lines else []
    return tables


def variant_of(name: str) -> str | None:
    """The method whose variant this is: "OKDDip-N-others" -> "OKDDip-N". None for a method of METHODS."""
    methods = [method for method in METHODS if name.startswith((f"{method}-", f"{method}+"))]
    return None if name in METHODS else max(methods, key=len, default=None)


def compare(group: pd.DataFrame, reference: pd.DataFrame, column: str) -> dict:
    """The value of a group in this column minus that of another group, over the seeds that both have.

    low, high: the confidence interval of the mean difference. p: of the two-sided paired t-test. Both rest on
    Student's t with n - 1 degrees of freedom. They are None if n < 2, or if the difference is the same for each seed.
    """
    values = pd.concat([group.set_index("seed")[column], reference.set_index("seed")[column]], axis=1, join="inner")
    own, other = (values.iloc[:, i].tolist() for i in (0, 1))
    minus = [a - b for a, b in zip(own, other, strict=True)]
    found = {"n": len(minus), "seeds": values.index.tolist(), "value": None, "reference_value": None, "mean": None,
             "low": None, "high": None, "p": None}
    if minus:
        found |= {"value": fmean(own), "reference_value": fmean(other), "mean": fmean(minus)}
    if minus and max(minus) - min(minus) > EQUAL:
        test = ttest_rel(own, other)
        low, high = test.confidence_interval(CONFIDENCE)
        found |= {"low": float(low), "high": float(high), "p": float(test.pvalue)}
    return found


def corrected(lines: list[dict]) -> list[dict]:
    """Add p_holm and the result in words to the lines of a table. Its tests are one family."""
    tested = [line for line in lines if line["p"] is not None]
    adjusted = iter(holm([line["p"] for line in tested]))
    lines = [line | {"p_holm": None if line["p"] is None else next(adjusted)} for line in lines]
    return [line | {"result": in_words(line)} for line in lines]


def holm(p: list[float]) -> list[float]:
    """Adjusted p values (Holm 1979): the i-th smallest of k, counted from 0, is max_{j <= i} min(1, (k - j) p_j)."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = adjusted[i] = max(largest, min(1.0, (len(p) - rank) * p[i]))
    return adjusted


def in_words(line: dict) -> str:
    """The result of a line of a table."""
    if line["n"] < 2:
        return ["no common seed", "one seed: no interval"][line["n"]]
    if line["p"] is None:
        return "the same for each seed: no interval"
    if line["low"] <= 0 <= line["high"]:
        return "not significant"
    return f"significantly {'lower' if line['mean'] < 0 else 'higher'}" + (NOT_HOLM if line["p_holm"] > LEVEL else "")


def summary(table: dict) -> str:
    """What a table shows, in sentences: first the differences that are significant after Holm's correction."""
    tested = [line for line in table["lines"] if line["p"] is not None]
    untested = [f"{line['name']} ({amount(table, line)})" for line in table["lines"] if line["p"] is None]
    significant = sorted((line for line in tested if line["result"] != "not significant"),
                         key=lambda line: (line["p_holm"] > LEVEL, line["mean"] > 0))
    said = []
    for result, same in itertools.groupby(significant, key=itemgetter("result")):
        lines, word = list(same), result.removesuffix(NOT_HOLM)
        holm = NOT_HOLM if result != word else ", also after Holm's correction" if len(tested) > 1 else ""
        than = f"a {word} {table['measure']} than {table['reference']}"
        said.append(f"{in_a_row([line['name'] for line in lines])} have {than}{holm}." if len(lines) > 1 else
                    f"Over {lines[0]['n']} seeds {lines[0]['name']} has {than} ({amount(table, lines[0])}){holm}.")
    if significant and len(tested) > len(significant):
        said.append("Every other 95 % interval contains 0.")
    elif tested and not significant:
        said.append("No difference is significant: every 95 % interval contains 0." if len(tested) > 1 else
                    f"The difference of {tested[0]['name']} is not significant ({amount(table, tested[0])}).")
    return " ".join(said + ([f"No test is possible for {in_a_row(untested)}."] if untested else []))


def amount(table: dict, line: dict) -> str:
    """The difference of a line and its interval, if it has them."""
    digits, unit = DIGITS[table["measure"]], "" if table["measure"] == "diversity" else " points"
    interval = "" if line["low"] is None else f", 95 % interval {line['low']:+.{digits}f} to {line['high']:+.{digits}f}"
    return f"{line['mean']:+.{digits}f}{unit}{interval}" if line["n"] else line["result"]


def in_a_row(names: list[str]) -> str:
    """"A, B and C"."""
    return " and ".join([*filter(None, [", ".join(names[:-1])]), names[-1]])
