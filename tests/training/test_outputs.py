import pytest

from training import outputs


@pytest.mark.parametrize(("name", "parts"), [
    ("test_accTop1", ("", "test", "accTop1")), ("stu_test_accTop1", ("stu_", "test", "accTop1")),
    ("stu12val_loss", ("stu12", "val", "loss")), ("train_loss_true", ("", "train", "loss_true"))])
def test_a_metric_is_parsed_as_it_is_spelled(name, parts):
    assert outputs.parse(name) == parts and outputs.metric(*parts) == name


def test_students():
    found = outputs.students_of(["stu_", "stu0", "stu1", "stu10", "", "gate_"])
    assert found == ["stu0", "stu1", "stu10"] and [outputs.student_number(o) for o in found] == [0, 1, 10]
    assert outputs.student(3) == "stu3" and outputs.student_number("stu_") is None


def test_the_mean_is_called_after_the_students():
    assert outputs.mean_titles({"stu_": "leader", "stu0": "peer 0", "": "ensemble"}) == {"mean_": "mean of the peers"}
    assert outputs.mean_titles({"stu0": "student 0, vgg16", "ema0": "mean peer 0", "ema1": "mean peer 1"}) == {
        "mean_": "mean of the students", "ema_": "mean of the mean peers"}
    assert outputs.mean_titles({"": "network"}) == {}
