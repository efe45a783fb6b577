"""Markdown, HTML and CSV hold what JSON holds, whatever the names."""

import csv
import io
import json

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
