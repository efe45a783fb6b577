"""Which runs are read, and what is said about the others."""

import made_up
import pytest

from analysis import groups, records


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


def test_runs_that_are_left_out_are_named(tmp_path):
    good = made_up.run(tmp_path, "ONE", 0, [30.0, 20.0])
    unfinished = made_up.run(tmp_path, "ONE", 1, [30.0, 20.0], num_epochs=300)
    gap = made_up.run(tmp_path, "ONE", 2, [30.0, 20.0])
    (gap / "metrics.jsonl").write_text((gap / "metrics.jsonl").read_text().replace('"epoch": 2', '"epoch": 3'))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "parameters.json").write_text('{"learning_rate": 1}')
    (foreign / "metrics.jsonl").write_text("{}\n")
    lonely, broken, listed, metricless, binary = (tmp_path / name for name in (
        "lonely", "broken", "listed", "metricless", "binary"))
    for folder in (lonely, broken, listed, metricless, binary):
        folder.mkdir()
        (folder / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    (broken / "parameters.json").write_text('{"model": ')
    (listed / "parameters.json").write_text("[1, 2]")
    (metricless / "parameters.json").write_text((good / "parameters.json").read_text())
    (binary / "parameters.json").write_bytes(b"\xff\xfe\x00")
    nan = made_up.run(tmp_path, "ONE", 3, [30.0, float("nan")])
    varying = made_up.run(tmp_path, "ONE", 4, [30.0, {"mean_test_accTop1": 70.0, "attention": [[1.0]]}])
    longer = made_up.run(tmp_path, "ONE", 5, [30.0, 20.0, 10.0], num_epochs=2)
    empty = tmp_path / "empty"
    empty.mkdir()

    runs, notes = records.find_runs([tmp_path, empty, tmp_path / "nowhere", good])
    assert [found.folder for found in runs] == [good]
    for folder, reason in [(unfinished, "2 of 300 epochs"), (gap, "not those from 1 to 2"),
                           (foreign, "not those of a run of this project"),
                           (lonely, "no parameters.json"), (broken, "not those of a run"),
                           (listed, "not those of a run"),
                           (metricless, "no mean_test_accTop1"), (nan, "not a number from 0"),
                           (varying, "do not all have the same metrics"), (longer, "not those from 1 to 2"),
                           (binary, "not those of a run"), (empty, "holds no run"),
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
    ("OKDDip", [{"stu_test_accTop1": 70.0, "attention": "even"}], {}, "its attention is not a square"),
    ("OKDDip", [{"stu_test_accTop1": 10.0, "attention": [[None] * 2] * 2, "attention_self": None}], {},
     "its attention has weights that are not finite numbers: the training diverged"),
    ("OKDDip", [{"stu_test_accTop1": 70.0, "attention_self": 2.0}], {}, "attention_self"),
    ("OKDDip", [30.0], {"environment": "here"}, "environment is 'here'"),
    *[("KDCL", [30.0], {"models": models}, "models is ") for models in (5, [1, 2, 3, 4], "abcd", ["resnet8"])],
    ("KDCL", [30.0], {"models": ["a", "b", "c", "d"]}, "no stu0test_accTop1"),
])
def test_a_run_with_wrong_metrics_is_left_out_with_the_reason(tmp_path, method, epochs, flags, reason):
    folder = made_up.run(tmp_path, method, 0, epochs, **flags)
    runs, (note,) = records.find_runs([tmp_path])
    assert runs == [] and note.startswith(f"{folder} is left out") and reason in note


def test_epochs_of_older_code_recorded_fewer_terms_of_the_loss(tmp_path):
    """A run that older code began and newer code continued is read, and is in one group with a run of either."""
    older = {"stu_test_accTop1": 70.0, "train_loss_true": 1.0}
    made_up.run(tmp_path, "OKDDip", 0, [older, older | {"train_loss_teacher": 1.0}])
    made_up.run(tmp_path, "OKDDip", 1, [older, older])
    runs, notes = records.find_runs([tmp_path])
    table, _ = groups.table_of_runs(runs)
    assert notes == [] and list(table["group"]) == [0, 0]


def test_a_damaged_line_is_named(tmp_path):
    folder = made_up.run(tmp_path, "ONE", 0, [30.0, 20.0])
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text()[:-9])
    assert "line 2 of metrics.jsonl is not JSON" in records.find_runs([tmp_path])[1][0]
