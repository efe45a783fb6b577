import json
import sys

import pytest

import train_DML
import train_GL
import train_one
from benchmarks import cost


def test_operations_of_a_network():
    """resnet8 by hand: two operations for each weight of a convolution at each position of its output."""
    convolutions = [(3, 16, 3, 32), (16, 16, 3, 32), (16, 16, 3, 32), (16, 32, 3, 16), (32, 32, 3, 16), (16, 32, 1, 16),
                    (32, 64, 3, 8), (64, 64, 3, 8), (32, 64, 1, 8)]  # in, out, kernel, output's height and width
    forward = sum(2 * i * o * k * k * size**2 for i, o, k, size in convolutions) + 2 * 64 * 10
    line = "python {} --model resnet8 --dataset CIFAR10 --num_epochs 2 --seed {}"
    backward = 2 * forward - 2 * 3 * 16 * 9 * 32**2  # gradients of weights and inputs, except of the images
    baseline = 2 * (50_000 * (forward + backward) + 10_000 * forward)
    assert cost.operations(line.format("train.py", 0)) == baseline
    assert cost.operations(line.format("train.py", 1)) == baseline
    teacher = 2 * 50_000 * forward  # a forward pass in each step, none in the evaluation
    assert cost.operations(line.format("train_kd.py --T_model resnet8", 0)) == baseline + teacher


@pytest.mark.parametrize("command, cls", [
    ("train_one.py", train_one.ONE), ("train_one.py --ind", train_one.Ind), ("train_DML.py", train_DML.DML),
    ("train_one.py --avg --bpscale", train_one.CollaborativeLearning), ("train_GL.py --MulStu", train_GL.OKDDip)])
def test_the_method_of_a_command(command, cls):
    found, args = cost.parse(f"python {command} --num_branches 3")
    assert found is cls and args.num_branches == 3


def test_the_table(script):
    done = script("benchmarks/cost.py", "table5", "table5", "--tflops", "4")
    assert done.returncode == 0, done.stderr
    _, _, five, again = [line.split("|")[1:-1] for line in done.stdout.splitlines()]
    assert [cell.strip() for cell in five[:3]] == ["table5.sh", "18", "18"] and float(five[3]) > 0
    assert [cell.strip() for cell in again] == ["table5.sh", "18", "0", "0.0", "0"]
    assert float(five[4]) == pytest.approx(float(five[3]) * 1e18 / 4e12 / 3600, rel=0.3)


def test_variables_of_the_environment(script):
    """As for the scripts: other networks, seeds, methods. A wrong one is one line."""
    done = script("benchmarks/cost.py", "table2", MODELS="resnet8", SEEDS="0 1", METHODS="baseline DML", EPOCHS="2")
    cells = [cell.strip() for cell in done.stdout.splitlines()[-1].split("|")[1:-1]]
    assert cells[:3] == ["table2.sh", "4", "4"] and cells[3] == "0.0", done.stderr
    for name, value, said in (("METHODS", "OKDip", "unknown method OKDip"), ("DATASETS", "DIGITS", "images of DIGITS")):
        done = script("benchmarks/cost.py", "table2", **{name: value})
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_hours_of_measured_gpus(tmp_path, monkeypatch, capsys):
    """A column for each; the rate of each network, and the slowest one for those that were not measured."""
    for name, rates in (("A", {"resnet8": 1e10, "vgg16": 5e9}), ("B", {"vgg16": 2e10})):
        result = {"machine": {"kind": "cuda", "name": name}, "quick": False, "operations_per_second": rates}
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    run = "python train.py --model {} --dataset CIFAR10 --num_epochs 9"
    monkeypatch.setattr(cost, "commands", lambda script: [run.format("resnet8"), run.format("resnet14")])
    monkeypatch.setattr(sys, "argv", ["cost.py", "table5", "--measured", str(tmp_path)])
    cost.main()
    printed = capsys.readouterr().out.splitlines()
    header, _, line = ([cell.strip() for cell in line.split("|")[1:-1]] for line in printed)
    eight, fourteen = (cost.operations(run.format(name)) for name in ("resnet8", "resnet14"))
    assert header[4:] == ["hours on one A", "hours on one B"]
    assert line[4:] == [f"{(eight / 1e10 + fourteen / 5e9) / 3600:,.0f}", f"{(eight + fourteen) / 2e10 / 3600:,.0f}"]
    assert len(set(line[4:])) == 2 and line[5] != "0"


def test_the_table_in_the_documentation_has_every_script():
    lines = (cost.ROOT / "docs" / "hardware.md").read_text().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("| ") and ".sh |" in line] == [
        f"{name}.sh" for name in cost.SCRIPTS]
