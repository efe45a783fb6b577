"""Which runs are read, what is said of the others, and which of them belong together."""

import json

import made_up
import pytest
import records
import run


def test_the_best_epoch_and_the_last(tmp_path):
    made_up.run(tmp_path, "ONE", 0, [30.0, 20.0, 20.0, 25.0])
    (found,), notes = records.find_runs([tmp_path])
    assert notes == [] and found.measured == "mean_"
    assert found.error("best", "mean_") == (20, 3) and found.error("last", "mean_") == (25, 4)  # a tie: the later
    assert found.error("best", "") == (40, 4)


def test_held_out_images_choose(tmp_path):
    epochs = [{"val_accTop1": 80.0, "test_accTop1": 70.0}, {"val_accTop1": 79.0, "test_accTop1": 75.0}]
    made_up.run(tmp_path, "baseline", 0, epochs, val_size=100)
    (found,), _ = records.find_runs([tmp_path])
    assert found.error("best", "") == (30, 1) and found.error("last", "") == (25, 2)


def test_everything_else_is_named_and_nothing_is_fatal(tmp_path):
    good = made_up.run(tmp_path, "ONE", 0, [30.0, 20.0])
    unfinished = made_up.run(tmp_path, "ONE", 1, [30.0, 20.0], num_epochs=300)
    gap = made_up.run(tmp_path, "ONE", 2, [30.0, 20.0])
    (gap / "metrics.jsonl").write_text((gap / "metrics.jsonl").read_text().replace('"epoch": 2', '"epoch": 3'))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "parameters.json").write_text('{"learning_rate": 1}')
    (foreign / "metrics.jsonl").write_text("{}\n")
    lonely, broken, listed, figureless, binary = (tmp_path / name for name in (
        "lonely", "broken", "listed", "figureless", "binary"))
    for folder in (lonely, broken, listed, figureless, binary):
        folder.mkdir()
        (folder / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    (broken / "parameters.json").write_text('{"model": ')
    (listed / "parameters.json").write_text("[1, 2]")
    (figureless / "parameters.json").write_text((good / "parameters.json").read_text())
    (binary / "parameters.json").write_bytes(b"\xff\xfe\x00")
    nan = made_up.run(tmp_path, "ONE", 3, [30.0, float("nan")])
    varying = made_up.run(tmp_path, "ONE", 4, [30.0, {"mean_test_accTop1": 70.0, "attention": [[1.0]]}])
    longer = made_up.run(tmp_path, "ONE", 5, [30.0, 20.0, 10.0], num_epochs=2)
    empty = tmp_path / "empty"
    empty.mkdir()

    runs, notes = records.find_runs([tmp_path, empty, tmp_path / "nowhere", good])
    assert [found.folder for found in runs] == [good]
    for folder, reason in [(unfinished, "2 of 300 epochs"), (gap, "not those from 1 to 2"),
                           (foreign, "not a run's of this project"),
                           (lonely, "no parameters.json"), (broken, "not a run's"), (listed, "not a run's"),
                           (figureless, "no mean_test_accTop1"), (nan, "not a number from 0"),
                           (varying, "not all of them the same"), (longer, "not those from 1 to 2"),
                           (binary, "not a run's"), (empty, "holds no run"),
                           (tmp_path / "nowhere", "does not exist")]:
        (note,) = [note for note in notes if note.startswith(f"{folder} ")]
        assert reason in note
    assert len(notes) == 13


@pytest.mark.parametrize("method, epochs, flags, reason", [
    ("ONE", [], {}, "not those from 1 to 0"),
    ("ONE", [30.0], {"val_size": 100}, "no mean_val_accTop1"),
    ("baseline", [{"test_accTop1": 70.0, "val_accTop1": None}], {"val_size": 100}, "not a number from 0"),
    ("ONE", [{"mean_test_accTop1": 70.0, "dist": None}], {}, "dist"),
    ("ONE", [{"mean_test_accTop1": 70.0, "dist": float("inf")}], {}, "dist"),
    ("OKDDip", [{"stu_test_accTop1": 70.0, "attention": [[0.5, 0.5], [1.0]]}], {}, "attention"),
    ("OKDDip", [{"stu_test_accTop1": 70.0, "attention": "even"}], {}, "attention"),
    ("OKDDip", [30.0], {"environment": "here"}, "environment is 'here'"),
])
def test_what_no_table_can_be_made_of_is_named(tmp_path, method, epochs, flags, reason):
    folder = made_up.run(tmp_path, method, 0, epochs, **flags)
    runs, (note,) = records.find_runs([tmp_path])
    assert runs == [] and note.startswith(f"{folder} is left out") and reason in note


def test_a_damaged_line_is_named(tmp_path):
    folder = made_up.run(tmp_path, "ONE", 0, [30.0, 20.0])
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text()[:-9])
    assert "line 2 of metrics.jsonl is not JSON" in records.find_runs([tmp_path])[1][0]


@pytest.mark.parametrize("flag, value", [("length", 2.0), ("num_epochs", 3), ("dropout", 0.5), ("amp", "bf16"),
                                         ("num_branches", 5), ("std", [0.3] * 3)])
def test_other_flags_make_another_group(tmp_path, flag, value):
    for seed in (0, 1):
        made_up.run(tmp_path, "ONE", seed, [30.0, 20.0])
        epochs = [30.0] * (value if flag == "num_epochs" else 2)
        made_up.run(tmp_path / "b", "ONE", seed, epochs, **({flag: value} if flag != "num_epochs" else {}))
    groups, notes = records.group(records.find_runs([tmp_path])[0])
    assert len(groups) == 2 and [g.seeds for g in groups] == [[0, 1]] * 2 and notes == []


def test_a_number_of_processes_makes_another_group(tmp_path):
    for seed, processes in ((0, 1), (1, 1), (2, 8)):
        made_up.run(tmp_path, "ONE", seed, [30.0], environment={"processes": processes, "device": f"cuda:{seed}"})
    groups, _ = records.group(records.find_runs([tmp_path])[0])
    assert [(g.flags["processes"], g.seeds) for g in groups] == [(1, [0, 1]), (8, [2])]


def test_runs_without_a_later_flag_are_grouped_with_those_that_name_it(tmp_path):
    """made_up's records, like those of the committed study, name neither flag."""
    made_up.run(tmp_path, "ONE", 0, [30.0])
    made_up.run(tmp_path, "ONE", 1, [30.0], train_size=0, detach_targets=False)
    made_up.run(tmp_path, "ONE", 2, [30.0], train_size=500)
    groups, _ = records.group(records.find_runs([tmp_path])[0])
    assert [(g.flags["train_size"], g.seeds) for g in groups] == [(0, [0, 1]), (500, [2])]


def test_other_figures_make_another_group(tmp_path):
    made_up.run(tmp_path, "ONE", 0, [30.0])
    made_up.run(tmp_path, "ONE", 1, [{"mean_test_accTop1": 70.0, "gate_test_accTop1": 71.0}])
    assert len(records.group(records.find_runs([tmp_path])[0])[0]) == 2


def test_the_recipe_in_words():
    recipe = {**made_up.FLAGS, "num_epochs": 8, "milestones": [4, 6]}
    plain = "8 epochs; batches of 128; learning rate 0.1, divided by 10 after epochs 4 and 6; weight decay 0.0005"
    assert records.recipe_in_words(recipe) == plain
    assert records.recipe_in_words({**recipe, "val_size": 100, "amp": "bf16", "sync_bn": True}) == (
        f"{plain}; best epoch chosen on 100 held-out training images; --sync_bn; --amp bf16")
    assert records.recipe_in_words({**recipe, "train_size": 500}) == f"{plain}; trained on 500 training images"
    short = records.recipe_in_words({**recipe, "num_epochs": 1, "milestones": [1, 1]})
    assert short == "1 epoch; batches of 128; learning rate 0.1; weight decay 0.0005"


@pytest.mark.parametrize("flag", sorted(run.FREE_FLAGS - {"num_epochs"}) + [
    "command", "starts", "weights", "schedule", "choose_E"])
def test_what_does_not_change_a_result_does_not_part_a_group(tmp_path, flag):
    made_up.run(tmp_path, "ONE", 0, [30.0, 20.0])
    folder = made_up.run(tmp_path, "ONE", 1, [30.0, 20.0])
    flags = json.loads((folder / "parameters.json").read_text())
    (folder / "parameters.json").write_text(json.dumps({**flags, flag: "something else"}))
    groups, _ = records.group(records.find_runs([tmp_path])[0])
    assert [g.seeds for g in groups] == [[0, 1]]


def test_one_seed_and_the_same_seed_twice_are_named(tmp_path):
    first = made_up.run(tmp_path / "a", "ONE", 0, [30.0])
    second = made_up.run(tmp_path / "b", "ONE", 0, [40.0])
    (g,), notes = records.group(records.find_runs([tmp_path])[0])
    assert [run.folder for run in g.runs] == [first]
    assert any(str(second) in note and str(first) in note for note in notes)
    assert any("only seed" in note for note in notes)
