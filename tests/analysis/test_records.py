"""Which runs are read, what is said about the others, and which runs belong together."""

import json

import made_up
import pytest

from analysis import records
from training.folder import FREE_FLAGS


def test_best_and_last_epoch(tmp_path):
    made_up.run(tmp_path, "ONE", 0, [30.0, 20.0, 20.0, 25.0])
    (found,), notes = records.find_runs([tmp_path])
    assert notes == [] and found.output == "mean_"
    assert found.error("best", "mean_") == (20, 3) and found.error("last", "mean_") == (25, 4)  # a tie: the later
    assert found.error("best", "") == (40, 4)


@pytest.mark.parametrize("val_size", [100, 0])
def test_held_out_images_choose_the_best_epoch(tmp_path, val_size):
    """Those of --val_size, or those in val/."""
    epochs = [{"val_accTop1": 80.0, "test_accTop1": 70.0}, {"val_accTop1": 79.0, "test_accTop1": 75.0}]
    made_up.run(tmp_path, "baseline", 0, epochs, val_size=val_size)
    (found,), _ = records.find_runs([tmp_path])
    assert found.error("best", "") == (30, 1) and found.error("last", "") == (25, 2)


# --- runs that are left out -------------------------------------------------------------------------------------------


def test_links_are_followed(tmp_path):
    made_up.run(tmp_path / "elsewhere", "ONE", 0, [30.0, 20.0])
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "CIFAR100").symlink_to(tmp_path / "elsewhere")
    ((found,), notes) = records.find_runs([tmp_path / "runs"])
    assert found.folder.parent == tmp_path / "runs" / "CIFAR100" and notes == []


def test_runs_that_are_left_out_are_named(tmp_path):
    """The others are read, each once."""
    good = made_up.run(tmp_path, "ONE", 0, [30.0, 20.0])
    unfinished = made_up.run(tmp_path, "ONE", 1, [30.0, 20.0], num_epochs=300)
    (tmp_path / "empty").mkdir()
    (good / "back").symlink_to(tmp_path)
    places = [tmp_path, tmp_path / "empty", tmp_path / "nowhere", good]
    found, notes = records.find_runs(places)
    assert [run.folder for run in found] == [good]
    assert notes == [f"{unfinished} is left out: it has 2 of 300 epochs, --resume continues it",
                     f"{tmp_path / 'empty'} holds no run", f"{tmp_path / 'nowhere'} does not exist"]


@pytest.mark.parametrize(("name", "content", "reason"), [
    ("parameters", b'{"learning_rate": 1}', "are not those of a run of this project"),
    ("parameters", b'{"model": ', "not those of a run"), ("parameters", b"[1, 2]", "not those of a run"),
    ("parameters", b"\xff\xfe\x00", "not those of a run"), ("parameters", None, "it has no parameters.json"),
    ("metrics", b'{"epoch": 1}\n{"epoch": 2}\n', "not those of a run"),
    ("metrics", b'{"epoch": 1}\n{"epoch": 3}\n', "not those from 1 to 2"),
    ("metrics", b'{"epoch": 1}\n{"epoch": 2}\n{"epoch": 3}\n', "not those from 1 to 2"),
    ("metrics", b'{"epoch": 1}\n{"epo', "not those of a run"), ("metrics", None, "it has no metrics.jsonl")])
def test_damaged_records(tmp_path, name, content, reason):
    folder = made_up.run(tmp_path, "ONE", 0, [30.0, 20.0])
    (file,) = folder.glob(f"{name}.*")
    file.write_bytes(content) if content else file.unlink()
    runs, (note,) = records.find_runs([tmp_path])
    assert runs == [] and note.startswith(f"{folder} is left out") and reason in note


@pytest.mark.parametrize("method, epochs, flags, reason", [
    ("ONE", [], {}, "not those from 1 to 0"),
    ("ONE", [30.0, {"mean_test_accTop1": 70.0, "gate_test_accTop1": 70.0}], {}, "do not all have the same metrics"),
    ("ONE", [{"mean_test_accTop1": 70.0, "dist": None}], {}, "the training diverged"),
    ("OKDDip", [{"stu_test_accTop1": 10.0, "attention": [[None] * 2] * 2, "attention_self": None}], {}, "diverged"),
    ("OKDDip", [{"stu_test_accTop1": 70.0, "attention": "even"}], {}, "not those of a run"),
    ("OKDDip", [30.0], {"environment": "here"}, "not those of a run"),
    ("baseline", [{"loss": 1.0}], {}, "not those of a run"),
    ("KDCL", [30.0], {"models": ["a", "b", "c", "d"]}, "stu0test_accTop1"),
])
def test_wrong_flags_and_metrics(tmp_path, method, epochs, flags, reason):
    folder = made_up.run(tmp_path, method, 0, epochs, **flags)
    runs, (note,) = records.find_runs([tmp_path])
    assert runs == [] and note.startswith(f"{folder} is left out") and reason in note


# --- groups -----------------------------------------------------------------------------------------------------------


def groups_in(folder):
    """-> (shared flags, seeds) of each group, and the notes."""
    runs, notes = records.table_of_runs(records.find_runs([folder])[0])
    return [(records.flags_of(group), group["seed"].tolist()) for group in records.split(runs)], notes


@pytest.mark.parametrize("flag, value", [("length", 2.0), ("num_epochs", 3), ("dropout", 0.5), ("amp", "bf16"),
                                         ("num_branches", 5), ("std", [0.3] * 3),
                                         ("environment", {"processes": 8}), ("revision", 2),
                                         ("files", {"net.py:Net": "0" * 64}),
                                         ("starts", [{"environment": {"processes": n}} for n in (2, 1)])])
def test_other_flags_make_another_group(tmp_path, flag, value):
    for seed in (0, 1):
        made_up.run(tmp_path, "ONE", seed, [30.0, 20.0])
        epochs = [30.0] * (value if flag == "num_epochs" else 2)
        made_up.run(tmp_path / "b", "ONE", seed, epochs, **({flag: value} if flag != "num_epochs" else {}))
    found, notes = groups_in(tmp_path)
    assert [seeds for _, seeds in found] == [[0, 1]] * 2 and notes == []


def test_other_metrics_make_another_group_other_gpus_do_not(tmp_path):
    for seed in (0, 1):
        made_up.run(tmp_path, "ONE", seed, [30.0], environment={"processes": 1, "device": f"cuda:{seed}"})
    made_up.run(tmp_path, "ONE", 3, [{"mean_test_accTop1": 70.0, "gate_test_accTop1": 71.0}])
    assert [seeds for _, seeds in groups_in(tmp_path)[0]] == [[0, 1], [3]]


def test_records_of_older_code_are_grouped_with_those_of_this_code(tmp_path):
    """It had fewer flags, recorded fewer terms of the loss, and no mean of the diagonal of the attention."""
    epoch = {"stu_test_accTop1": 70.0, "attention": [[0.75, 0.25], [0.75, 0.25]], "train_loss_true": 1.0}
    later = epoch | {"attention_self": 0.5, "train_loss_teacher": 1.0}
    made_up.run(tmp_path, "OKDDip", 0, [epoch, epoch])
    made_up.run(tmp_path, "OKDDip", 1, [epoch, later])  # older code began it, newer code continued it
    made_up.run(tmp_path, "OKDDip", 2, [later, later], train_size=0, detach_targets=False)
    runs, notes = records.table_of_runs(records.find_runs([tmp_path])[0])
    (group,) = records.split(runs)
    assert notes == [] and [[e["attention_self"] for e in history] for history in group["history"]] == [[0.5] * 2] * 3


@pytest.mark.parametrize("flag", sorted(FREE_FLAGS - {"num_epochs"}) + [
    "command", "starts", "weights", "schedule", "choose_E"])
def test_flags_that_do_not_change_a_result_may_differ_within_a_group(tmp_path, flag):
    made_up.run(tmp_path, "ONE", 0, [30.0, 20.0])
    folder = made_up.run(tmp_path, "ONE", 1, [30.0, 20.0])
    flags = json.loads((folder / "parameters.json").read_text())
    other = "something else" if flag != "starts" else [{"environment": {}}] * 2
    (folder / "parameters.json").write_text(json.dumps({**flags, flag: other}))
    assert [seeds for _, seeds in groups_in(tmp_path)[0]] == [[0, 1]]


def test_a_lone_seed_and_a_repeated_seed_are_named(tmp_path):
    first = made_up.run(tmp_path / "a", "ONE", 0, [30.0])
    second = made_up.run(tmp_path / "b", "ONE", 0, [40.0])
    runs, notes = records.table_of_runs(records.find_runs([tmp_path])[0])
    assert runs["folder"].tolist() == [str(first)]
    assert any(str(second) in note and str(first) in note for note in notes)
    assert notes[1:] == ["only one seed, so no standard deviation, in 1 of 1 group"]


# --- titles -----------------------------------------------------------------------------------------------------------


def test_the_recipe_in_words():
    """With other milestones, and with a flag that the paper's recipe does not have. Of the rest: results/study.md."""
    recipe = {**made_up.FLAGS, "num_epochs": 9, "train_size": 0, "optimizer": "adamw"}
    for milestones, words in (([3, 7], ", divided by 10 after epochs 3 and 7"), ([9, 9], "")):
        _, _, rate, *_, flag = records.recipe_words({**recipe, "milestones": milestones})
        assert rate == f"learning rate 0.1{words}" and flag == "--optimizer adamw"
