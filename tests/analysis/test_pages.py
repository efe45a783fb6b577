"""Markdown, HTML and CSV hold what JSON holds, whatever the names."""

import csv
import io
import json
import re

import made_up
import pytest


def test_names_cannot_break_a_table(tmp_path, printed):
    made_up.run(tmp_path, "a|b", 0, [30.0], model="<net>", output="mean_")
    lines = [line for line in printed(tmp_path, "--html", tmp_path / "new" / "page.html").splitlines()
             if line.startswith("|")]
    assert "a\\|b" in lines[0]
    assert len({line.replace("\\|", "").count("|") for line in lines[:4]}) == 1
    page = (tmp_path / "new" / "page.html").read_text()
    assert "<td>&lt;net&gt;</td>" in page and "<net>" not in page


def test_students_of_a_mixed_group_have_names(tmp_path, printed):
    """In Markdown, HTML, CSV and JSON, with the flags that distinguish two groups."""
    for seed, temperature, error in ((0, 2.0, 30.0), (1, 2.0, 29.0), (0, 4.0, 40.0)):
        last = {"mean_test_accTop1": 75.0, "stu0test_accTop1": 100 - error, "stu1test_accTop1": 80.0}
        made_up.run(tmp_path / str(temperature), "KDCL", seed, [last | {"stu0test_accTop1": 99.0}, last],
                    model="resnet8+vgg16", models=["resnet8", "vgg16"], num_branches=2, temperature=temperature)
    made_up.run(tmp_path, "ONE", 0, [20.0, 20.0])
    text = printed(tmp_path, "--html", tmp_path / "page.html")
    row, names = "ResNet-8 + VGG-16, 2 students", ["student 0, ResNet-8", "student 1, VGG-16"]
    shown = [re.findall(r"[^|\s][^|]*[^|\s]", line) for line in text.splitlines() if re.search("student [01],", line)]
    assert shown == [[f"{row}, KDCL (mean) [temperature 2.0]", names[0], "29.50 ± 0.71"],
                     [f"{row}, KDCL (mean) [temperature 2.0]", names[1], "20.00 ± 0.00"],
                     [f"{row}, KDCL (mean) [temperature 4.0]", names[0], "40.00"],
                     [f"{row}, KDCL (mean) [temperature 4.0]", names[1], "20.00"]]
    assert f"<td>{names[0]}</td><td>29.50 ± 0.71</td>" in (tmp_path / "page.html").read_text()
    lines = csv.DictReader(io.StringIO(printed(tmp_path, "--csv")))
    columns = ("row", "column", "telling_flags", "student", "seeds", "last_mean")
    found = [[line[name] for name in columns] for line in lines if line["table"] == "different networks"]
    place = [f"{row}, CIFAR100 (2 classes)", "KDCL (mean)"]
    assert found == [[*place, "temperature 2.0", names[0], "0 1", "29.5"],
                     [*place, "temperature 2.0", names[1], "0 1", "20.0"],
                     [*place, "temperature 4.0", names[0], "0", "40.0"],
                     [*place, "temperature 4.0", names[1], "0", "20.0"]]
    groups = [group for section in json.loads(printed(tmp_path, "--json"))["sections"] for table in section["tables"]
              for row in table["rows"] for cell in row["cells"] for group in cell["groups"]]
    assert [list(group["students_by_name"]) for group in groups] == [[], names, names]


def test_csv_and_json_hold_the_same(tmp_path, printed):
    for seed in (0, 1):
        made_up.run(tmp_path, "ONE", seed, [26.0 + seed, 28.0])
    lines = list(csv.DictReader(io.StringIO(printed(tmp_path, "--csv"))))
    (line,) = [line for line in lines if line["n"] != "0"]
    place = [line[name] for name in ("table", "row", "column", "n", "seeds")]
    assert place == ["table2", "ResNet-32", "ONE", "2", "0 1"]
    names = ("best_mean", "best_sd", "last_mean", "last_sd", "published_mean", "published_sd", "difference",
             "students_mean", "ensemble_mean", "ensemble_sd", "diversity_mean", "diversity_sd")
    assert [float(line[name]) for name in names] == pytest.approx(
        [26.5, 0.5**0.5, 28.0, 0.0, 26.50, 0.13, 0.0, 28.0, 40.0, 0.0, 0.25, 0.0])
    assert line["best_epochs"] == "1 1" and line["telling_flags"] == line["leader_mean"] == ""
    assert len(lines) == 35
    everything = json.loads(printed(tmp_path, "--json"))
    (cell,) = [c for row in everything["sections"][0]["tables"][0]["rows"] for c in row["cells"] if c["groups"]]
    assert cell["groups"][0]["best"] == pytest.approx([26.5, 0.5**0.5]) and cell["published"] == [26.5, 0.13]
    assert len(cell["groups"][0]["runs"]) == 2 and everything["notes"] == []
    (tmp_path / "other").mkdir()
    notes = json.loads(printed(tmp_path, tmp_path / "other", "--json"))["notes"]
    assert notes == [f"{tmp_path / 'other'} holds no run"]
