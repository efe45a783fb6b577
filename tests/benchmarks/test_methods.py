import re

from benchmarks import methods
from methods import METHODS


def test_every_method_is_measured_beside_okddip(capsys):
    methods.main(["--model", "resnet8", "--num_branches", "2", "--batch_size", "4", "--rounds", "1", "--device", "cpu"])
    printed = capsys.readouterr().out
    rows = dict(re.findall(r"^(\S+) +\d+ +([\d.]+)(?: \(.*\))? +[\d.]+$", printed, re.MULTILINE))
    assert rows.keys() == METHODS.keys() and rows["OKDDip"] == "1"
