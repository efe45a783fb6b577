"""Which runs belong together, and the table with a row for each run."""

import json

import made_up
import pytest

from analysis import groups, records
from training.folder import FREE_FLAGS


def groups_in(folder):
    """-> (shared flags, seeds) of each group, and the notes."""
    runs, notes = groups.table_of_runs(records.find_runs([folder])[0])
    return [(groups.flags_of(group), group["seed"].tolist()) for group in groups.split(runs)], notes


@pytest.mark.parametrize("flag, value", [("length", 2.0), ("num_epochs", 3), ("dropout", 0.5), ("amp", "bf16"),
                                         ("num_branches", 5), ("std", [0.3] * 3)])
def test_other_flags_make_another_group(tmp_path, flag, value):
    for seed in (0, 1):
        made_up.run(tmp_path, "ONE", seed, [30.0, 20.0])
        epochs = [30.0] * (value if flag == "num_epochs" else 2)
        made_up.run(tmp_path / "b", "ONE", seed, epochs, **({flag: value} if flag != "num_epochs" else {}))
    found, notes = groups_in(tmp_path)
    assert [seeds for _, seeds in found] == [[0, 1]] * 2 and notes == []


def test_another_number_of_processes_makes_another_group(tmp_path):
    for seed, processes in ((0, 1), (1, 1), (2, 8)):
        made_up.run(tmp_path, "ONE", seed, [30.0], environment={"processes": processes, "device": f"cuda:{seed}"})
    found, _ = groups_in(tmp_path)
    assert [(flags["processes"], seeds) for flags, seeds in found] == [(1, [0, 1]), (8, [2])]


def test_runs_without_a_later_flag_are_grouped_with_those_that_name_it(tmp_path):
    """The records of made_up and of the committed study name neither flag."""
    made_up.run(tmp_path, "ONE", 0, [30.0])
    made_up.run(tmp_path, "ONE", 1, [30.0], train_size=0, detach_targets=False)
    made_up.run(tmp_path, "ONE", 2, [30.0], train_size=500)
    found, _ = groups_in(tmp_path)
    assert [(flags["train_size"], seeds) for flags, seeds in found] == [(0, [0, 1]), (500, [2])]


def test_other_metrics_make_another_group(tmp_path):
    made_up.run(tmp_path, "ONE", 0, [30.0])
    made_up.run(tmp_path, "ONE", 1, [{"mean_test_accTop1": 70.0, "gate_test_accTop1": 71.0}])
    assert len(groups_in(tmp_path)[0]) == 2


def test_runs_without_attention_self_are_grouped_with_those_that_name_it(tmp_path):
    """Older code recorded only the matrix. The mean of its diagonal is the same metric."""
    epoch = {"stu_test_accTop1": 70.0, "attention": [[0.75, 0.25], [0.5, 0.5]]}
    made_up.run(tmp_path, "OKDDip", 0, [epoch])
    made_up.run(tmp_path, "OKDDip", 1, [epoch | {"attention_self": 0.625}])
    runs, notes = groups.table_of_runs(records.find_runs([tmp_path])[0])
    (group,) = groups.split(runs)
    assert notes == [] and [history[0]["attention_self"] for history in group["history"]] == [0.625, 0.625]


@pytest.mark.parametrize("flag", sorted(FREE_FLAGS - {"num_epochs"}) + [
    "command", "starts", "weights", "schedule", "choose_E"])
def test_flags_that_do_not_change_a_result_may_differ_within_a_group(tmp_path, flag):
    made_up.run(tmp_path, "ONE", 0, [30.0, 20.0])
    folder = made_up.run(tmp_path, "ONE", 1, [30.0, 20.0])
    flags = json.loads((folder / "parameters.json").read_text())
    (folder / "parameters.json").write_text(json.dumps({**flags, flag: "something else"}))
    assert [seeds for _, seeds in groups_in(tmp_path)[0]] == [[0, 1]]


def test_a_lone_seed_and_a_repeated_seed_are_named(tmp_path):
    first = made_up.run(tmp_path / "a", "ONE", 0, [30.0])
    second = made_up.run(tmp_path / "b", "ONE", 0, [40.0])
    runs, notes = groups.table_of_runs(records.find_runs([tmp_path])[0])
    assert runs["folder"].tolist() == [str(first)]
    assert any(str(second) in note and str(first) in note for note in notes)
    assert any("only seed" in note for note in notes)


def test_methods_can_be_compared_seed_by_seed(tmp_path):
    for seed in (2, 0, 1):
        made_up.run(tmp_path, "ONE", seed, [30.0 + seed, 35.0])
        made_up.run(tmp_path, "OKDDip", seed, [29.0, {"stu_test_accTop1": 72.0 - seed, "test_accTop1": 80.0}])
    runs, _ = groups.table_of_runs(records.find_runs([tmp_path])[0])
    best = runs.pivot(index="seed", columns="method", values="best")
    assert best["ONE"].to_dict() == {0: 30, 1: 31, 2: 32} and best["OKDDip"].to_dict() == {0: 28, 1: 29, 2: 29}
    assert runs.groupby("method")["ensemble"].mean().to_dict() == {"ONE": 40, "OKDDip": 20}
    assert groups.mean_and_deviation(best["ONE"]) == [31, 1]
