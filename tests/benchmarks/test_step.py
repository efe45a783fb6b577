import copy
import re

import pytest
import torch

import losses
from benchmarks import compare, step
from training.method import SingleNetwork

CPU = torch.device("cpu")


def test_plain_steps_compute_the_same():
    """In float64, three steps: the losses, which depend on the gradients of the steps before.

    With a weight of 0 or 1, a version that forgets w(e) would agree.
    """
    torch.manual_seed(0)
    method = compare.method("OKDDip", 10, model="resnet8", num_branches=3)
    method.model.double()
    images, labels = torch.randn(8, 3, 32, 32, dtype=torch.float64), torch.randint(10, (8,))
    weight = method.ramp_up(step.EPOCH, step.NUM_EPOCHS)
    assert 0.1 < weight < 0.9
    ours, plain = step.ours(method, CPU, "off"), step.Plain(method.model, CPU, "off")
    for _ in range(3):
        for contender in (ours, plain):
            contender.step(images, labels, weight)
        assert ours.means()["terms"] == pytest.approx(plain.means()["terms"], 1e-9)


def test_peak_memory_of_a_step():
    """A million weights. Ours holds weights, momentum and gradients; plain also two sums in its optimizer."""
    class Linear(SingleNetwork):
        def loss(self, model, images, labels, weight):
            z = model(images)
            return losses.Terms(total=z.sum(), true=z.sum(), group=z.sum()), {"": z}

    def plain_loss(model, images, labels):
        z = model(images)
        return z.sum(), z.sum(), []

    net, batch = torch.nn.Linear(1000, 1000, bias=False), (torch.zeros(1, 1000), torch.zeros(1, dtype=torch.int64), 0.0)
    for contender, copies in ((step.Plain(copy.deepcopy(net), CPU, "off", plain_loss), 5),
                              (step.ours(Linear(net), CPU, "off"), 3)):
        contender.step(*batch)
        assert step.peak(contender, batch) / 4e6 == pytest.approx(copies, abs=0.02)


def test_two_versions_that_disagree_end_the_benchmark(monkeypatch):
    plain = step.plain_okddip

    def wrong(*inputs):
        true, group, outputs = plain(*inputs)
        return true, 1.01 * group, outputs

    monkeypatch.setattr(step.Plain.__init__, "__defaults__", (wrong,))
    with pytest.raises(SystemExit, match="first loss of OKDDip, plain: group is"):
        step.main(["--model", "resnet8", "--batch_size", "8", "--device", "cpu"])


def test_the_times_and_ratios_that_are_printed(monkeypatch, capsys):
    monkeypatch.setattr(compare, "in_turns", lambda turns, rounds, device: {
        name: [15.0 if "plain" in name else 5.0] * rounds for name in turns})
    step.main("--model resnet8 --batch_size 8 --rounds 1 --steps 10 --device cpu".split())
    printed = re.sub("[ |]+", " ", capsys.readouterr().out)
    assert "\nOKDDip 500.00 1 " in printed and "\nOKDDip, plain 1500.00 3.000 " in printed
