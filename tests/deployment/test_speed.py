"""Speed: medians of forward passes, and numbers of parameters."""

import torch

import models
from deployment import speed
from deployment.reading import read

CPU = torch.device("cpu")


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_speed_and_parameters(runs, monkeypatch):
    """The median time of the group and of its leader for a batch, measured in turns."""
    seconds = {"Network": [9, 1, 2, 3, 1, 2, 4, 3], "OKDDip": [99, 5, 2, 4, 6, 3, 5, 4]}
    turns = []

    def timed(network, images, autocast):
        turns.append(type(network).__name__)
        return seconds[turns[-1]][turns.count(turns[-1]) - 1]

    with monkeypatch.context() as patch:
        patch.setattr(speed, "timed", timed)
        found = speed.measure_speed(read(runs / "OKDDip" / "resnet8"), "stu_", 32, CPU)
    assert turns == ["Network", "OKDDip"] * 8
    assert (found["deployed"]["images_per_second"], found["group"]["images_per_second"]) == (16, 8)  # 32 in 2 and 4
    assert found["deployed"]["parameters"] == parameters(models.create_model("resnet8", 10))
    assert found["group"]["parameters"] == parameters(models.OKDDip("resnet8", 10))
    alone = speed.measure_speed(read(runs / "resnet8"), "", 32, CPU)
    assert "group" not in alone and alone["deployed"]["images_per_second"] > 0
