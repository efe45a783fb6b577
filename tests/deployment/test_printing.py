"""Results as text. tests/test_evaluate.py compares the table of a run with its metrics."""

from deployment import printing


def result(classes, deployed=None):
    """A result of ``measure`` for a group of two students, made up."""
    outputs = {"stu0": "student 0", "stu1": "student 1", "": "ensemble"}
    metrics = {f"{output}test_{name}": 50.0 for output in [*outputs, "mean_"]
               for name in ("accTop1", "accTop5", "loss", "ece")}
    metrics |= {f"{output}test_accPerClass": [None, *[25.0] * (len(classes) - 1)] for output in outputs}
    speed = {"images_per_second": 1234.5, "parameters": 5678}
    return {"file": "best.pth", "epoch": None, "method": "Ind", "model": "resnet8", "dataset": "DIGITS", "images": 1000,
            "classes": classes, "device": "cpu", "rows": outputs, "deployed": deployed, "figures": metrics,
            "speed": {"batch_size": 32, "deployed": speed, "group": speed}}


def test_a_group_without_a_leader():
    lines = printing.table(result(["cat", "dog"])).splitlines()
    assert lines[0] == "best.pth: Ind, resnet8; 1,000 test images of DIGITS, on cpu"
    words = [line.split() for line in lines]
    assert ["mean", "of", "the", "students", "50.00", "50.00"] in words
    assert ["top-1", "by", "class", "ensemble"] in words
    assert ["cat", "-"] in words and ["dog", "25.00"] in words  # a class without images has no accuracy
    assert ["one", "student", "1,234", "5,678"] in words and ["the", "group", "1,234", "5,678"] in words


def test_a_chosen_student_stands_beside_the_ensemble():
    words = [line.split() for line in printing.table(result(["cat", "dog"], "stu1")).splitlines()]
    assert ["top-1", "by", "class", "student", "1", "ensemble"] in words and ["dog", "25.00", "25.00"] in words


def test_many_classes_are_only_in_the_json():
    text = printing.table(result([f"class {c}" for c in range(101)]))
    assert "top-1 of each of the 101 classes: --json" in text and "class 5" not in text
