"""Tables of made-up runs with known answers; Markdown, HTML, CSV and JSON hold the same."""

import csv
import io
import json
import re

import made_up
import pytest


def table(text, title):
    """The first Markdown table under a heading that begins with ``title``: name of the line -> {column: cell}."""
    part = text[re.search(rf"^### {re.escape(title)}", text, re.MULTILINE).end():]
    (_, *columns), _, *lines = [re.split(r"\s*(?<!\\)\|\s*", line)[1:-1]
                                for line in re.search(r"\n\n(\|.*?)\n\n", part, re.DOTALL)[1].splitlines()]
    return {name: dict(zip(columns, cells, strict=True)) for name, *cells in lines}


def test_mean_deviation_and_difference(tmp_path, printed):
    for seed, (best, last) in enumerate([(25.0, 26.0), (26.0, 27.5), (27.0, 29.0)]):
        made_up.run(tmp_path, "OKDDip", seed, [50.0, best, last])
    made_up.run(tmp_path, "baseline", 0, [50.0, 29.0, 29.0])
    lines = table(printed(tmp_path), "Table 2: CIFAR-100: ResNet-32")
    assert lines["OKDDip-B"] == {
        "seeds": "3", "last epoch": "27.50 ± 1.50", "best epoch": "26.00 ± 1.00", "paper": "25.63 ± 0.14",
        "best - published": "+0.37", "PCL (AAAI 2021)": "26.75", "MCL-OKD's README": "25.76",
        "mean of the students": "50.00 ± 0.00", "ensemble": "40.00 ± 0.00", "diversity": "0.250 ± 0.000"}
    assert lines["Baseline"].items() >= {"seeds": "1", "best epoch": "29.00", "ensemble": "–"}.items()
    assert [*lines] == ["Baseline", "OKDDip-B"]


def test_the_paper_s_tables(tmp_path, printed):
    for model in ("vgg16", "resnet32", "resnet110"):
        made_up.run(tmp_path, "DML", 0, [6.0], dataset="CIFAR10", model=model)
    made_up.run(tmp_path, "OKDDip+KD", 0, [6.0], dataset="CIFAR10", T_model="resnet110")
    thousand = [str(c) for c in range(1000)]
    made_up.run(tmp_path, "ONE", 0, [26.0], dataset="imagenet", model="resnet34", classes=thousand)
    made_up.run(tmp_path / "two classes", "ONE", 0, [9.0], dataset="imagenet", model="resnet34")
    for m in (3, 8):
        made_up.run(tmp_path, "ONE", 0, [26.0 + m / 10], num_branches=m)
    epochs = [{"test_accTop1": 78.0, "mean_test_accTop1": 70.0}, {"test_accTop1": 77.0, "mean_test_accTop1": 71.0}]
    made_up.run(tmp_path, "OKDDip-no_leader", 0, epochs, no_leader=True, output="mean_")
    made_up.run(tmp_path, "OKDDip-random", 0, [28.0, 28.5])
    text = printed(tmp_path)
    lines = table(text, "Table 1")
    assert [*lines] == ["ResNet-32, DML", "VGG-16, DML", "ResNet-110, DML"]
    assert lines["VGG-16, DML"]["best - published"] == "+0.06"
    assert table(text, "Table 3: ImageNet: ResNet-34")["ONE"]["best - published"] == "+0.08"
    assert "best - published" not in table(text, "ResNet-34 on imagenet (2 classes)")["ONE"]
    assert table(text, "Table 6: ResNet-32 with a teacher: CIFAR-10")["OKDDip+KD"]["best - published"] == "+0.64"
    sizes = table(text, "Figure 3")
    assert [*sizes] == ["3 branches, ONE", "8 branches, ONE"]
    assert sizes["8 branches, ONE"].items() >= {"best epoch": "26.80", "best - published": "+0.50"}.items()
    assert "have another recipe" in text and "Paper: Chen et al." in text and "Note: published values are" in text
    four, five = table(text, "Table 4"), table(text, "Table 5")
    assert four["OKDDip"].items() >= {"best epoch": "22.00", "last epoch": "23.00"}.items()
    assert five["one level"]["best epoch"] == "29.00" and five["random weights"]["last epoch"] == "28.50"


def test_the_table_of_a_later_paper(tmp_path, printed):
    """Errors are 100 minus the accuracies that PCL printed. Each method's own temperature is no deviation; code
    that computed something else is one."""
    made_up.run(tmp_path, "PCL", 0, [26.0], num_branches=3, output="stu_", temperature=3.0)
    made_up.run(tmp_path, "KDCL", 0, [27.0], num_branches=3, temperature=2.0)
    made_up.run(tmp_path, "OKDPH", 0, [27.5], num_branches=3, output="stu_", temperature=3.0, revision=2)
    made_up.run(tmp_path, "FFL", 0, [30.0], num_branches=3, model="vgg16", dropout=0.0, MulStu=False)
    made_up.run(tmp_path, "ONE", 0, [31.0], num_branches=3, model="vgg16", dropout=0.5)
    lines = table(printed(tmp_path), "Table of PCL (AAAI 2021): CIFAR-100")
    assert {name: line["best epoch"] for name, line in lines.items()} == {
        "ResNet-32, PCL [revision 1]": "26.00", "ResNet-32, KDCL (mean)": "27.00",
        "ResNet-32, OKDPH [temperature 3.0]": "27.50", "VGG-16, ONE [dropout 0.5]": "31.00", "VGG-16, FFL": "30.00"}
    assert lines["ResNet-32, PCL [revision 1]"]["PCL"] == "25.86 ± 0.16"
    assert lines["ResNet-32, KDCL (mean)"]["best - published"] == "+0.76"


def test_other_networks_and_data_have_tables_of_their_own(tmp_path, printed):
    made_up.run(tmp_path, "CL", 0, [29.0], dataset="folder", model="resnet20")
    for size in (2, 4):
        made_up.run(tmp_path, "OKDDip", 0, [30.0 + size], dataset="folder", model="my-resnet", num_branches=size)
    text = printed(tmp_path)
    assert table(text, "ResNet-20 on folder (2 classes)")["CL"]["best epoch"] == "29.00"
    lines = table(text, "folder (2 classes)")
    assert {name: line["last epoch"] for name, line in lines.items()} == {
        "my-resnet, 2 students, OKDDip-B": "32.00", "my-resnet, OKDDip-B": "34.00"}
    assert not any("paper" in line for line in lines.values())
    assert text.startswith("# Test error of OKDDip-B and CL: ResNet-20 and my-resnet on folder (2 classes)\n")
    made_up.run(tmp_path, "ONE", 0, [29.0], dataset="folder", model="resnet20")
    for method in ("DML", "Ind", "KDCL"):
        made_up.run(tmp_path, method, 0, [29.0], dataset="DIGITS", model="resnet20")
    title = "# Test error of 6 methods: ResNet-20 and my-resnet on folder (2 classes) and DIGITS (2 classes)"
    assert printed(tmp_path).startswith(title)


@pytest.mark.parametrize("flags, shown", [
    ([{"length": 2.0}, {"length": 80.0}], ["ONE [length 2.0]", "ONE [length 80.0]"]),
    ([{"alpha": 0.5, "temperature": 3.0}], ["ONE [alpha 0.5]"]), ([{"alpha": 1.0}], ["ONE"])])
def test_flags_that_differ_from_another_group_or_from_the_paper_are_shown(tmp_path, printed, flags, shown):
    for i, different in enumerate(flags):
        made_up.run(tmp_path / str(i), "ONE", 0, [30.0], **different)
    assert [*table(printed(tmp_path), "Table 2")] == shown


@pytest.mark.parametrize("method, model, dropout, unusual", [
    ("ONE", "vgg16", 0.0, True), ("ONE", "vgg16", 0.5, False), ("ONE", "resnet32", 0.0, False),
    ("ONE", "resnet32", 0.5, True), ("DML", "vgg16", 0.5, True), ("OKDDip", "vgg16", 0.5, False),
    ("OKDDip-N", "vgg16", 0.5, True), ("OKDDip-N", "vgg16", 0.0, False)])
def test_dropout_belongs_in_the_branches_of_a_vgg(tmp_path, printed, method, model, dropout, unusual):
    """The flag --MulStu says whether they are branches, not the name of the method."""
    made_up.run(tmp_path, method, 0, [30.0], model=model, dropout=dropout)
    assert (f"[dropout {dropout}]" in printed(tmp_path)) == unusual


def test_every_other_recipe_is_another_section(tmp_path, printed):
    """Its heading says how it differs. What all recipes share is said once, and so is each explanation and command."""
    epochs = [{"mean_test_accTop1": 70.0, "mean_val_accTop1": 70.0, "val_accTop1": 70.0}] * 300
    made_up.run(tmp_path, "ONE", 0, epochs, milestones=[150, 225])
    made_up.run(tmp_path, "Ind", 0, epochs, milestones=[150, 225])
    assert "have another recipe" not in printed(tmp_path)
    for i, flag in enumerate(({"val_size": 100}, {"train_size": 500}, {"amp": "fp16"}, {"sync_bn": True})):
        for method in ("DML", "Ind"):
            made_up.run(tmp_path / str(i), method, 0, epochs, milestones=[150, 225], **flag)
    text = printed(tmp_path)
    assert {*re.findall("^## (.*)", text, re.MULTILINE)} == {
        "best epoch chosen on 100 held-out training images", "500 training images", "--amp fp16", "--sync_bn",
        "No further flags", "The command of each group's first seed"}
    assert text.count("### Table 2") == text.count("### Differences of the last epoch's error") == 5
    for once in ("have another recipe", "300 epochs; batches of 128; learning", "within each table", "train.py --seed"):
        assert text.count(once) == 1, once
    made_up.run(tmp_path / "smooth", "ONE", 0, epochs, milestones=[150, 225], label_smoothing=0.1)
    assert "have another recipe" in printed(tmp_path / "smooth")


def test_students_of_a_mixed_group_have_names(tmp_path, printed):
    """With the flags that distinguish two groups."""
    for seed, temperature, error in ((0, 2.0, 30.0), (1, 2.0, 29.0), (0, 4.0, 40.0)):
        last = {"mean_test_accTop1": 75.0, "stu0test_accTop1": 100 - error, "stu1test_accTop1": 80.0}
        made_up.run(tmp_path / str(temperature), "KDCL", seed, [last | {"stu0test_accTop1": 99.0}, last],
                    model="resnet8+vgg16", models=["resnet8", "vgg16"], num_branches=2, temperature=temperature)
    shown = [re.findall(r"[^|\s][^|]*[^|\s]", line) for line in printed(tmp_path).splitlines()
             if re.search("student [01],", line)]
    assert shown == [[f"KDCL (mean) [temperature {temperature}]", name, error]
                     for temperature, errors in (("2.0", ("29.50 ± 0.71", "20.00 ± 0.00")), ("4.0", ("40.00", "20.00")))
                     for name, error in zip(("student 0, ResNet-8", "student 1, VGG-16"), errors, strict=True)]


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
    (line,) = csv.DictReader(io.StringIO(printed(tmp_path, "--csv")))
    pairs = {"best": group["best"], "last": group["last"], "published": cell["published"],
             "students": group["besides"]["mean_"], "diversity": group["besides"]["dist"]}
    for name, pair in pairs.items():
        assert [float(line[f"{name}_{part}"]) for part in ("mean", "sd")] == pytest.approx(pair)


def test_data_of_the_same_title_are_told_apart(tmp_path, printed):
    """By their folders, and by a number if one has other images now. Each table has its own figures."""
    for i, (folder, classes) in enumerate((("/a/birds", "xy"), ("/a/{cats}", "ab"), ("/b/birds", "uv"), (".", "no"))):
        for method in ("ONE", "Ind"):
            made_up.run(tmp_path / str(i), method, 0, [30.0, 20.0], dataset="folder", data_dir=folder,
                        classes=[*classes])
    page = tmp_path / "page.html"
    text = printed(tmp_path, "--html", page)
    for title in (f"folder (2 classes), {name}" for name in ("birds, 1", "{cats}", "birds, 3", ".")):
        assert [*table(text, f"ResNet-32 on {title}")] == ["Ind", "ONE"]
        assert page.read_text().count(f"ResNet-32 on {title}: learning curves") == 1
    made_up.run(tmp_path / "1", "ONE", 0, [30.0, 20.0], dataset="folder", data_dir="/a/{cats}", classes=["a", "b"],
                num_branches=3)
    assert "ResNet-32, 3 students, ONE" in table(printed(tmp_path), "folder (2 classes), {cats}")


def test_the_command_of_several_processes_is_torchruns(tmp_path, printed):
    made_up.run(tmp_path, "ONE", 0, [30.0, 20.0], environment={"processes": 4})
    made_up.run(tmp_path, "Ind", 0, [30.0, 20.0])
    text = printed(tmp_path)
    assert "torchrun --nproc_per_node=4 train.py --seed 0" in text and "python train.py --seed 0" in text


def test_names_cannot_break_a_table(tmp_path, printed):
    for method in ("a|b", "ONE"):
        made_up.run(tmp_path, method, 0, [30.0], model="<net>", output="mean_", dataset="folder",
                    command="train.py --data_dir \udcfc")  # a name that is no UTF-8
    page = tmp_path / "new" / "page.html"
    assert {"a\\|b", "ONE"} == {*table(printed(tmp_path, "--html", page), "<net> on folder")}
    assert "<h3>&lt;net&gt; on folder" in page.read_text() and "<net>" not in page.read_text()
