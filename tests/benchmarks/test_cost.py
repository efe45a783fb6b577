import pytest

import train_DML
import train_GL
import train_one
from benchmarks import cost
from runtime.errors import UserError


@pytest.fixture
def table(capsys):
    """table("table2", ...) -> the cells of each line that cost.py prints, without the ruler."""
    def read(*words):
        cost.main([*words])
        header, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]]
                             for line in capsys.readouterr().out.splitlines())
        return header, *lines

    return read


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


def test_flags_that_change_the_data_count():
    of = {flags: cost.operations(f"python train.py --model resnet8 --dataset CIFAR10 {flags}")
          for flags in ("", "--train_size 25000", "--image_size 64", "--val_size 5000 --train_size 25000")}
    whole, half, large, both = of.values()
    assert 0.5 < half / whole < 0.6 and 3.5 < large / whole < 4.1 and half < both < 1.1 * half
    with pytest.raises(UserError, match="operations of torchvision:resnet18 are not counted"):
        cost.operations("python train.py --model torchvision:resnet18 --dataset CIFAR10")


def test_paths_do_not_change_the_operations():
    command = "python train_kd.py --T_model resnet8 --model resnet8 --dataset CIFAR10 --num_epochs 1"
    assert cost.operations(f"{command} --T_model_path 'my runs/a b' --seed 1") == cost.operations(command) > 0


def test_a_run_of_an_earlier_script_is_not_counted_again(table, monkeypatch):
    monkeypatch.setenv("MODELS", "resnet8")
    monkeypatch.setenv("METHODS", "baseline")
    _, first, again = table("table1", "table1", "--tflops", "0.001")
    assert first[:3] == ["table1.sh", "3", "3"] and again == ["table1.sh", "3", "0", "0.0", "0"]
    (_, _, lines), = cost.new_runs(["table1"])
    assert float(first[4].replace(",", "")) == pytest.approx(sum(map(cost.operations, lines)) / 1e9 / 3600, rel=1e-3)


def test_variables_of_the_environment_that_cannot_be_counted(table, monkeypatch):
    for name, value, said in (
            ("MODELS", "resnet31", "unknown network 'resnet31'"), ("DATASETS", "DIGITS", "images of DIGITS"),
            ("METHODS", "OKDip", "unknown method OKDip")):
        monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=said):
            table("table2")


def test_the_table_in_the_documentation_has_every_script():
    lines = (cost.ROOT / "docs" / "reproducing.md").read_text().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("| ") and ".sh |" in line] == [
        f"{name}.sh" for name in cost.SCRIPTS]
