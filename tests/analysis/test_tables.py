"""Tables of made-up runs with known answers."""

import json
import re

import made_up
import pytest

from analysis.tables import PUBLISHED


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
    assert cells["ResNet-32", "best epoch"]["OKDDip-B"] == "26.00 ± 1.00 (3)"
    assert cells["ResNet-32", "last epoch"]["OKDDip-B"] == "27.50 ± 1.50 (3)"
    assert cells["ResNet-32", "paper"]["OKDDip-B"] == "25.63 ± 0.14"
    assert cells["ResNet-32", "difference"]["OKDDip-B"] == "+0.37"
    assert cells["ResNet-32", "PCL (AAAI 2021)"]["OKDDip-B"] == "26.75"
    assert cells["ResNet-32", "best epoch"]["Baseline"] == "29.00 (1)"
    assert cells["ResNet-32", "best epoch"]["DML"] == "not run"
    assert cells["VGG-16", "best epoch"]["OKDDip-B"] == "not run" and cells["VGG-16", "difference"]["DML"] == "–"


def test_the_paper_s_layout(tmp_path, printed):
    made_up.run(tmp_path, "DML", 0, [6.0], dataset="CIFAR10", model="vgg16")
    made_up.run(tmp_path, "OKDDip+KD", 0, [6.0], dataset="CIFAR10", T_model="resnet110")
    made_up.run(tmp_path, "ONE", 0, [26.0], dataset="imagenet", model="resnet34")
    text = printed(tmp_path)
    networks = ["DenseNet-40-12", "ResNet-32", "VGG-16", "ResNet-110", "WRN-20-8"]
    cells = table(text, "Table 1")
    assert list(dict.fromkeys(row for row, _ in cells)) == networks
    assert list(cells["VGG-16", "paper"]) == ["Baseline", "Ind", "DML", "CL-ILR", "ONE", "OKDDip-N", "OKDDip-B"]
    assert cells["VGG-16", "difference"]["DML"] == "+0.06"
    assert table(text, "Table 3")["ResNet-34", "difference"]["ONE"] == "+0.08"
    assert table(text, "Table 6")["CIFAR-10", "difference"]["OKDDip+KD"] == "+0.64"
    assert "not the recipe" in text


def test_the_ensemble_and_the_ablation(tmp_path, printed):
    epochs = [{"test_accTop1": 78.0, "mean_test_accTop1": 70.0}, {"test_accTop1": 77.0, "mean_test_accTop1": 71.0}]
    made_up.run(tmp_path, "OKDDip-no_leader", 0, epochs, no_leader=True, output="mean_")
    made_up.run(tmp_path, "OKDDip-random", 0, [28.0, 28.5])
    text = printed(tmp_path)
    assert table(text, "Table 4")["ResNet-32", "best epoch"]["OKDDip"] == "22.00 (1)"
    assert table(text, "Table 4")["ResNet-32", "last epoch"]["OKDDip"] == "23.00 (1)"
    assert table(text, "Table 5")["ResNet-32", "best epoch"]["one level"] == "29.00 (1)"
    assert table(text, "Table 5")["ResNet-32", "last epoch"]["random weights"] == "28.50 (1)"


def test_the_table_of_a_later_paper(tmp_path, printed):
    """Errors are 100 minus the accuracies that PCL printed. Each method's own temperature is no deviation."""
    made_up.run(tmp_path, "PCL", 0, [26.0], num_branches=3, output="stu_", temperature=3.0)
    made_up.run(tmp_path, "KDCL", 0, [27.0], num_branches=3, temperature=2.0)
    made_up.run(tmp_path, "OKDPH", 0, [27.5], num_branches=3, output="stu_", temperature=3.0)
    made_up.run(tmp_path, "FFL", 0, [30.0], num_branches=3, model="vgg16", dropout=0.0, MulStu=False)
    cells = table(printed(tmp_path), "Table of PCL (AAAI 2021): CIFAR-100")
    ours = cells["ResNet-32", "best epoch"]
    expected = {"PCL": "26.00 (1)", "KDCL (mean)": "27.00 (1)", "OKDPH": "27.50 (1) [temperature 3.0]"}
    assert expected.items() <= ours.items() and cells["ResNet-32", "PCL"]["PCL"] == "25.86 ± 0.16"
    assert cells["ResNet-32", "difference"]["KDCL (mean)"] == "+0.76"
    made_up.run(tmp_path, "ONE", 0, [31.0], num_branches=3, model="vgg16", dropout=0.5)
    cells = table(printed(tmp_path), "Table of PCL (AAAI 2021): CIFAR-100")
    assert cells["VGG-16", "best epoch"]["ONE"] == "31.00 (1) [dropout 0.5]"
    assert cells["VGG-16", "best epoch"]["FFL"] == "30.00 (1)" and cells["WRN-20-8", "PCL"]["PCL"] == "19.49 ± 0.49"


def test_group_size(tmp_path, printed):
    for m in (3, 4, 8):
        made_up.run(tmp_path, "ONE", 0, [26.0 + m / 10], num_branches=m)
    cells = table(printed(tmp_path), "Figure 3")
    ours = {place: columns["ONE"] for place, columns in cells.items()}
    assert ours["8 branches", "best epoch"] == "26.80 (1)" and ours["8 branches", "difference"] == "+0.50"
    assert ours["5 branches", "best epoch"] == "not run" and ours["4 branches", "paper"] == "–"


def test_other_networks_and_data_have_a_table_of_their_own(tmp_path, printed):
    made_up.run(tmp_path, "OKDDip", 0, [30.0], dataset="folder", model="resnet8")
    made_up.run(tmp_path, "CL", 0, [30.0], dataset="folder", model="resnet20")
    cells = table(printed(tmp_path), "folder (2 classes)")
    assert cells["ResNet-8", "best epoch"]["OKDDip-B"] == cells["ResNet-20", "best epoch"]["CL"] == "30.00 (1)"
    assert [row for row, line in cells if line == "best epoch"] == ["ResNet-8", "ResNet-20"]
    assert ("ResNet-8", "paper") not in cells


def test_a_cell_with_two_groups_shows_the_flag_in_which_they_differ(tmp_path, printed):
    for length, error in ((2.0, 30.0), (80.0, 31.0)):
        made_up.run(tmp_path / str(length), "ONE", 0, [error], length=length)
    assert table(printed(tmp_path), "Table 2")["ResNet-32", "best epoch"]["ONE"] == (
        "30.00 (1) [length 2.0]<br>31.00 (1) [length 80.0]")


def test_flags_that_differ_from_the_paper_are_shown(tmp_path, printed):
    made_up.run(tmp_path, "OKDDip", 0, [30.0], alpha=0.5, temperature=3.0)
    cells = table(printed(tmp_path), "Table 2")
    assert cells["ResNet-32", "best epoch"]["OKDDip-B"] == "30.00 (1) [alpha 0.5]"


def test_dropout_belongs_in_the_branches_of_a_vgg(tmp_path, printed):
    for method, model in (("ONE", "vgg16"), ("DML", "vgg16"), ("ONE", "resnet32")):
        for dropout, error in ((0.0, 30.0), (0.5, 31.0)):
            made_up.run(tmp_path / str(dropout), method, 0, [error], model=model, dropout=dropout)
    lone = made_up.run(tmp_path / "alone", "OKDDip", 0, [32.0], model="vgg16", dropout=0.5)
    cells = table(printed(tmp_path), "Table 2")
    both = "30.00 (1) [dropout 0.0]<br>31.00 (1) [dropout 0.5]"
    assert cells["VGG-16", "best epoch"]["ONE"] == cells["ResNet-32", "best epoch"]["ONE"] == both
    assert cells["VGG-16", "best epoch"]["OKDDip-B"] == "32.00 (1)"
    assert table(printed(lone), "Table 2")["VGG-16", "best epoch"]["OKDDip-B"] == "32.00 (1)"
    for folder, name in (("0.0", "ONE_vgg16"), ("0.5", "DML_vgg16"), ("0.5", "ONE_resnet32")):
        (run,) = (tmp_path / folder).glob(f"{name}*")
        assert f"[dropout {folder}]" in printed(run)


def test_only_branches_have_dropout(tmp_path, printed):
    """The flag --MulStu decides, not the name of the method."""
    made_up.run(tmp_path, "OKDDip-N", 0, [30.0], model="vgg16", dropout=0.5)
    made_up.run(tmp_path, "OKDDip-N", 0, [30.0], model="vgg16", dropout=0.0, dataset="CIFAR10")
    text = printed(tmp_path)
    assert table(text, "Table 2")["VGG-16", "best epoch"]["OKDDip-N"] == "30.00 (1) [dropout 0.5]"
    assert table(text, "Table 1")["VGG-16", "best epoch"]["OKDDip-N"] == "30.00 (1)"


def test_pairwise_dml_is_not_the_paper_s(tmp_path, printed):
    made_up.run(tmp_path, "DML", 0, [30.0], type="pairwise")
    assert table(printed(tmp_path), "Table 2")["ResNet-32", "best epoch"]["DML"] == "30.00 (1) [type pairwise]"


@pytest.mark.parametrize("flag", [{"val_size": 100}, {"train_size": 500}, {"amp": "fp16"}, {"sync_bn": True}, {}])
def test_every_other_recipe_is_marked(tmp_path, printed, flag):
    epochs = [{"mean_test_accTop1": 70.0, "mean_val_accTop1": 70.0, "val_accTop1": 70.0}] * 300
    made_up.run(tmp_path, "ONE", 0, epochs, milestones=[150, 225], **flag)
    assert ("not the recipe" in printed(tmp_path)) == bool(flag)


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


def test_networks_are_sorted_by_name_and_number(tmp_path, printed):
    names = ["my-net-a", "my-net-3", "resnet8", "tiny"]
    for name in names:
        made_up.run(tmp_path, "ONE", 0, [30.0], model=name)
    cells = table(printed(tmp_path), "CIFAR100 (2 classes)")
    assert [row for row, line in cells if line == "best epoch"] == ["ResNet-8", "my-net-3", "my-net-a", "tiny"]


def test_another_recipe_is_another_section(tmp_path, printed):
    made_up.run(tmp_path, "ONE", 0, [30.0])
    made_up.run(tmp_path, "DML", 0, [40.0], batch_size=64)
    text = printed(tmp_path)
    assert text.count("\n## ") == 2 and text.count("### Table 2") == 2 and "batches of 64" in text


def test_published_values_are_the_paper_s():
    """Some numbers of each table, copied from the paper a second time; and the shapes of all tables."""
    tables = json.loads(PUBLISHED.read_text())["tables"]
    assert list(tables) == ["table1", "table2", "table3", "table4", "table5", "table6", "figure3", "pcl_cifar10",
                            "pcl_cifar100"]
    for layout in tables.values():
        assert all(len(row["published"]) == len(layout["columns"]) for row in layout["rows"])
    assert tables["table1"]["rows"][3]["published"][2] == [5.68, 0.03]
    assert tables["table2"]["rows"][4]["published"][5] == [19.63, 0.07]
    assert [mean for mean, _ in tables["table3"]["rows"][0]["published"]] == [26.76, 26.03, 26.06, 25.92, 25.42, 25.60]
    assert tables["table4"]["rows"][1]["published"][2] == [23.45, None]
    assert tables["table5"]["rows"][0]["published"][4] == [27.79, 0.14]
    assert tables["table6"]["rows"][1]["published"][2] == [24.92, 0.08]
    assert tables["pcl_cifar10"]["rows"][3]["published"][5] == [6.13, 0.08]  # KDCL, DenseNet-40-12: accuracy 93.87
