"""Baseline: one network, trained on the labels alone.

    python train.py --model resnet32 --dataset CIFAR10

The loss is ``losses.individual_loss``.

Measured, test error of the last epoch, 10,000 images of CIFAR-100, resnet20 (results/): 53.06 ± 0.28 % (5 seeds).
"""

import utils


def parse_args(argv: list[str] | None):
    """The flags of this script."""
    return utils.parse(utils.Parser(__doc__), argv)


if __name__ == "__main__":
    utils.before_pytorch(parse_args)  # --help, wrong flags and a finished run end here

import models
from losses import individual_loss
from training.loop import train_method
from training.method import SingleNetwork
from training.outputs import WHOLE


class Baseline(SingleNetwork):
    """One network and the cross-entropy."""

    def __init__(self, args, num_classes: int):
        super().__init__(models.create_model(args.model, num_classes, **utils.network_options(args)), args)

    @classmethod
    def name(cls, args) -> str:
        return "baseline"

    def loss(self, model, images, labels, weight):
        z = model(images)  # [B, C]
        return individual_loss(z, labels), {WHOLE: z}


def main(argv: list[str] | None = None) -> None:
    """Train with the flags ``argv`` (default: the command line). UserError if flags, data or a file are wrong."""
    train_method(Baseline, parse_args(argv))


if __name__ == "__main__":
    utils.command(main)
