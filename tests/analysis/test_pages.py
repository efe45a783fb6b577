"""Tables of made-up runs with known answers; Markdown, HTML, CSV and JSON hold the same."""

import csv
import io
import json
import re

import made_up
import pytest

from analysis.pages import PUBLISHED


def table(text, title):
    """The cells of a Markdown table under a heading that begins with ``title``: (row, line) -> {column: cell}."""
    part = text[re.search(rf"^### {re.escape(title)}", text, re.MULTILINE).end():]
    lines = [[cell.strip() for cell in line.strip("|").split("|")]
             for line in re.search(r"\n\n(\|.*?)\n\n", part, re.DOTALL)[1].splitlines()]
    columns, cells, row = lines[0][2:], {}, ""
    for name, line, *values in lines[2:]:
        row = name or row
        cells[row, line] = dict(zip(columns, values, strict=True))
    return cells


def test_mean_deviation_and_difference(tmp_path, printed):
    for seed, (best, last) in enumerate([(25.0, 26.0), (26.0, 27.5), (27.0, 29.0)]):
        made_up.run(tmp_path, "OKDDip", seed, [50.0, best, last])
    made_up.run(tmp_path, "baseline", 0, [50.0, 29.0, 29.0])
    cells = table(printed(tmp_path), "Table 2")
    assert [cells["ResNet-32", line]["OKDDip-B"] for line in (
        "best epoch", "last epoch", "paper", "difference", "PCL (AAAI 2021)")] == [
        "26.00 ± 1.00 (3)", "27.50 ± 1.50 (3)", "25.63 ± 0.14", "+0.37", "26.75"]
    assert cells["ResNet-32", "best epoch"]["Baseline"] == "29.00 (1)"
    assert cells["ResNet-32", "best epoch"]["DML"] == "not run"
    assert cells["VGG-16", "best epoch"]["OKDDip-B"] == "not run" and cells["VGG-16", "difference"]["DML"] == "–"


def test_the_paper_s_layout(tmp_path, printed):
    made_up.run(tmp_path, "DML", 0, [6.0], dataset="CIFAR10", model="vgg16")
    made_up.run(tmp_path, "OKDDip+KD", 0, [6.0], dataset="CIFAR10", T_model="resnet110")
    made_up.run(tmp_path, "ONE", 0, [26.0], dataset="imagenet", model="resnet34")
    for m in (3, 8):
        made_up.run(tmp_path, "ONE", 0, [26.0 + m / 10], num_branches=m)
    text = printed(tmp_path)
    cells = table(text, "Table 1")
    networks = ["DenseNet-40-12", "ResNet-32", "VGG-16", "ResNet-110", "WRN-20-8"]
    assert list(dict.fromkeys(row for row, _ in cells)) == networks
    assert list(cells["VGG-16", "paper"]) == ["Baseline", "Ind", "DML", "CL-ILR", "ONE", "OKDDip-N", "OKDDip-B"]
    assert cells["VGG-16", "difference"]["DML"] == "+0.06"
    assert table(text, "Table 3")["ResNet-34", "difference"]["ONE"] == "+0.08"
    assert table(text, "Table 6")["CIFAR-10", "difference"]["OKDDip+KD"] == "+0.64"
    sizes = {place: columns["ONE"] for place, columns in table(text, "Figure 3").items()}
    assert sizes["8 branches", "best epoch"] == "26.80 (1)" and sizes["8 branches", "difference"] == "+0.50"
    assert sizes["5 branches", "best epoch"] == "not run" and sizes["4 branches", "paper"] == "–"
    assert "not the recipe" in text


def test_the_ensemble_and_the_ablation(tmp_path, printed):
    epochs = [{"test_accTop1": 78.0, "mean_test_accTop1": 70.0}, {"test_accTop1": 77.0, "mean_test_accTop1": 71.0}]
    made_up.run(tmp_path, "OKDDip-no_leader", 0, epochs, no_leader=True, output="mean_")
    made_up.run(tmp_path, "OKDDip-random", 0, [28.0, 28.5])
    text = printed(tmp_path)
    four, five = table(text, "Table 4"), table(text, "Table 5")
    assert [four["ResNet-32", f"{epoch} epoch"]["OKDDip"] for epoch in ("best", "last")] == ["22.00 (1)", "23.00 (1)"]
    assert five["ResNet-32", "best epoch"]["one level"] == "29.00 (1)"
    assert five["ResNet-32", "last epoch"]["random weights"] == "28.50 (1)"


def test_the_table_of_a_later_paper(tmp_path, printed):
    """Errors are 100 minus the accuracies that PCL printed. Each method's own temperature is no deviation."""
    made_up.run(tmp_path, "PCL", 0, [26.0], num_branches=3, output="stu_", temperature=3.0)
    made_up.run(tmp_path, "KDCL", 0, [27.0], num_branches=3, temperature=2.0)
    made_up.run(tmp_path, "OKDPH", 0, [27.5], num_branches=3, output="stu_", temperature=3.0)
    made_up.run(tmp_path, "FFL", 0, [30.0], num_branches=3, model="vgg16", dropout=0.0, MulStu=False)
    made_up.run(tmp_path, "ONE", 0, [31.0], num_branches=3, model="vgg16", dropout=0.5)
    cells = table(printed(tmp_path), "Table of PCL (AAAI 2021): CIFAR-100")
    ours = cells["ResNet-32", "best epoch"]
    expected = {"PCL": "26.00 (1)", "KDCL (mean)": "27.00 (1)", "OKDPH": "27.50 (1) [temperature 3.0]"}
    assert expected.items() <= ours.items() and cells["ResNet-32", "PCL"]["PCL"] == "25.86 ± 0.16"
    assert cells["ResNet-32", "difference"]["KDCL (mean)"] == "+0.76"
    assert cells["VGG-16", "best epoch"]["ONE"] == "31.00 (1) [dropout 0.5]"
    assert cells["VGG-16", "best epoch"]["FFL"] == "30.00 (1)" and cells["WRN-20-8", "PCL"]["PCL"] == "19.49 ± 0.49"


def test_other_networks_and_data_have_a_table_of_their_own(tmp_path, printed):
    """Networks are sorted by name and number."""
    names = ["my-net-a", "my-net-3", "resnet8", "resnet20"]
    for name in names:
        made_up.run(tmp_path, "CL" if name == "resnet20" else "OKDDip", 0, [30.0], dataset="folder", model=name)
    cells = table(printed(tmp_path), "folder (2 classes)")
    assert cells["ResNet-8", "best epoch"]["OKDDip-B"] == cells["ResNet-20", "best epoch"]["CL"] == "30.00 (1)"
    assert [row for row, line in cells if line == "best epoch"] == ["ResNet-8", "ResNet-20", "my-net-3", "my-net-a"]
    assert ("ResNet-8", "paper") not in cells


@pytest.mark.parametrize("flags, shown", [
    ([{"length": 2.0}, {"length": 80.0}], "30.00 (1) [length 2.0]<br>30.00 (1) [length 80.0]"),
    ([{"alpha": 0.5, "temperature": 3.0}], "30.00 (1) [alpha 0.5]"), ([{"alpha": 1.0}], "30.00 (1)")])
def test_flags_that_differ_from_another_group_or_from_the_paper_are_shown(tmp_path, printed, flags, shown):
    for i, different in enumerate(flags):
        made_up.run(tmp_path / str(i), "ONE", 0, [30.0], **different)
    assert table(printed(tmp_path), "Table 2")["ResNet-32", "best epoch"]["ONE"] == shown


@pytest.mark.parametrize("method, model, dropout, unusual", [
    ("ONE", "vgg16", 0.0, True), ("ONE", "vgg16", 0.5, False), ("ONE", "resnet32", 0.0, False),
    ("ONE", "resnet32", 0.5, True), ("DML", "vgg16", 0.5, True), ("OKDDip", "vgg16", 0.5, False),
    ("OKDDip-N", "vgg16", 0.5, True), ("OKDDip-N", "vgg16", 0.0, False)])
def test_dropout_belongs_in_the_branches_of_a_vgg(tmp_path, printed, method, model, dropout, unusual):
    """The flag --MulStu says whether they are branches, not the name of the method."""
    made_up.run(tmp_path, method, 0, [30.0], model=model, dropout=dropout)
    assert (f"30.00 (1) [dropout {dropout}]" in printed(tmp_path)) == unusual


def test_every_other_recipe_is_another_section_and_marked(tmp_path, printed):
    epochs = [{"mean_test_accTop1": 70.0, "mean_val_accTop1": 70.0, "val_accTop1": 70.0}] * 300
    made_up.run(tmp_path, "ONE", 0, epochs, milestones=[150, 225])
    assert "not the recipe" not in printed(tmp_path)
    others = ({"val_size": 100}, {"train_size": 500}, {"amp": "fp16"}, {"sync_bn": True})
    for i, flag in enumerate(others):
        made_up.run(tmp_path / str(i), "DML", 0, epochs, milestones=[150, 225], **flag)
    text = printed(tmp_path)
    assert text.count("\n## ") == text.count("### Table 2") == 5 and text.count("not the recipe") == 4


def test_attention_of_the_peers_to_themselves(tmp_path, printed):
    """Of the first and the last epoch, and at an eighth, a quarter, half and three quarters of the training."""
    for seed in (0, 1):
        matrices = [[[(e + 2 * seed) / 64, 0.5], [0.5, e / 64]] for e in range(1, 41)]
        made_up.run(tmp_path, "OKDDip", seed, [{"stu_test_accTop1": 70.0, "attention": m} for m in matrices])
        made_up.run(tmp_path, "ONE", seed, [30.0] * 40)
    text = printed(tmp_path)
    header, _, *lines = text[text.index("### Attention of the peers"):].split("\n\n")[3].splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")[1:]] == [
        "seeds", *(f"epoch {e}" for e in (1, 5, 10, 20, 30, 40))]
    ((name, *cells),) = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert name == "OKDDip-B"
    assert cells == ["2", *(f"{(e + 0.5) / 64:.2f} ± 0.01" for e in (1, 5, 10, 20, 30, 40))]


def test_students_of_a_mixed_group_have_names(tmp_path, printed):
    """With the flags that distinguish two groups."""
    for seed, temperature, error in ((0, 2.0, 30.0), (1, 2.0, 29.0), (0, 4.0, 40.0)):
        last = {"mean_test_accTop1": 75.0, "stu0test_accTop1": 100 - error, "stu1test_accTop1": 80.0}
        made_up.run(tmp_path / str(temperature), "KDCL", seed, [last | {"stu0test_accTop1": 99.0}, last],
                    model="resnet8+vgg16", models=["resnet8", "vgg16"], num_branches=2, temperature=temperature)
    made_up.run(tmp_path, "ONE", 0, [20.0, 20.0])
    row, names = "ResNet-8 + VGG-16, 2 students", ["student 0, ResNet-8", "student 1, VGG-16"]
    shown = [re.findall(r"[^|\s][^|]*[^|\s]", line) for line in printed(tmp_path).splitlines()
             if re.search("student [01],", line)]
    assert shown == [[f"{row}, KDCL (mean) [temperature {temperature}]", name, error]
                     for temperature, errors in (("2.0", ("29.50 ± 0.71", "20.00 ± 0.00")), ("4.0", ("40.00", "20.00")))
                     for name, error in zip(names, errors, strict=True)]
    lines = [line for line in csv.DictReader(io.StringIO(printed(tmp_path, "--csv")))
             if line["table"] == "different networks"]
    assert [(line["telling_flags"], line["student"], line["seeds"], line["last_mean"]) for line in lines] == [
        (f"temperature {temperature}", name, seeds, error) for temperature, seeds, errors in (
            ("2.0", "0 1", ("29.5", "20.0")), ("4.0", "0", ("40.0", "20.0")))
        for name, error in zip(names, errors, strict=True)]


def test_csv_and_json_hold_the_same(tmp_path, printed):
    for seed in (0, 1):
        made_up.run(tmp_path, "ONE", seed, [26.0 + seed, 28.0])
    (tmp_path / "other").mkdir()
    everything = json.loads(printed(tmp_path, tmp_path / "other", "--json"))
    assert everything["notes"] == [f"{tmp_path / 'other'} holds no run"]
    (cell,) = [c for row in everything["sections"][0]["tables"][0]["rows"] for c in row["cells"] if c["groups"]]
    (group,) = cell["groups"]
    assert group["best"] == pytest.approx([26.5, 0.5**0.5]) and cell["published"] == [26.5, 0.13]
    assert len(group["runs"]) == 2
    lines = list(csv.DictReader(io.StringIO(printed(tmp_path, "--csv"))))
    (line,) = [line for line in lines if line["n"] != "0"]
    assert [line[name] for name in ("table", "row", "column", "n", "seeds", "best_epochs", "telling_flags")] == [
        "table2", "ResNet-32", "ONE", "2", "0 1", "1 1", ""]
    pairs = {"best": group["best"], "last": group["last"], "published": cell["published"],
             "students": group["besides"]["mean_"], "diversity": group["besides"]["dist"]}
    for name, pair in pairs.items():
        assert [float(line[f"{name}_{part}"]) for part in ("mean", "sd")] == pytest.approx(pair)


def test_names_cannot_break_a_table(tmp_path, printed):
    made_up.run(tmp_path, "a|b", 0, [30.0], model="<net>", output="mean_")
    lines = [line for line in printed(tmp_path, "--html", tmp_path / "new" / "page.html").splitlines()
             if line.startswith("|")]
    assert "a\\|b" in lines[0]
    assert len({line.replace("\\|", "").count("|") for line in lines[:4]}) == 1
    page = (tmp_path / "new" / "page.html").read_text()
    assert "<td>&lt;net&gt;</td>" in page and "<net>" not in page


def test_published_values_are_the_paper_s():
    """Some numbers of each table, copied from the paper a second time; and the shapes of all tables."""
    tables = json.loads(PUBLISHED.read_text())["tables"]
    for layout in tables.values():
        assert all(len(row["published"]) == len(layout["columns"]) for row in layout["rows"])
    for name, row, column, value in [
            ("table1", 3, 2, [5.68, 0.03]), ("table2", 4, 5, [19.63, 0.07]), ("table3", 0, 4, [25.42, None]),
            ("table4", 1, 2, [23.45, None]), ("table5", 0, 4, [27.79, 0.14]), ("table6", 1, 2, [24.92, 0.08]),
            ("pcl_cifar10", 3, 5, [6.13, 0.08])]:  # KDCL, DenseNet-40-12: accuracy 93.87
        assert tables[name]["rows"][row]["published"][column] == value
