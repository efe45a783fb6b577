"""Feature Fusion Learning (FFL, Kim et al., ICPR 2020): students and a classifier of their fused features.

    python train_FFL.py --model resnet32 --dataset CIFAR10
    python train_FFL.py --model resnet32 --dataset CIFAR10 --MulStu      # whole networks instead of branches

The fused classifier (``models.FFL``) and the ensemble of the students teach each other: ``losses.ffl_loss``.

Details follow the authors' public code, which has m = 2. There the weight decay of the fusion is 1e-5 and that of the
networks 1e-4; here all weights have the same.

Measured, test error of the last epoch, mean of the students, resnet20, 10,000 images of CIFAR-100 (results/):
51.30 ± 0.55 % (3 seeds).
"""

import utils


def parse_args(argv: list[str] | None):
    """The flags of this script."""
    parser = utils.Parser(__doc__)
    g = utils.distillation_flags(parser, "FFL")
    utils.ramp_up_flags(g)
    utils.group_flags(g, "students (authors' code: 2)")
    return utils.parse(parser, argv)


if __name__ == "__main__":
    utils.before_pytorch(parse_args)  # --help, wrong flags and a finished run end here

import models
from losses import ffl_loss
from training.loop import train_method
from training.method import Group
from training.outputs import FUSED, group_outputs


class FFL(Group):
    """m students and the fused classifier."""

    def __init__(self, args, num_classes: int):
        super().__init__(args, models.FFL(args.model, num_classes, args.num_branches, args.MulStu,
                                          **utils.network_options(args)))
        self.outputs = self.outputs | {FUSED: "fused classifier"}

    def loss(self, model, images, labels, weight):
        args = self.args
        z, s = model(images)  # [B, m, C], [B, C]
        return ffl_loss(z, s, labels, weight, args.temperature, args.alpha, args.loss), self.measured(z, s)

    def measured(self, z, s):  # [B, m, C], [B, C]
        return group_outputs(z) | {FUSED: s}


def main(argv: list[str] | None = None) -> None:
    """Train with the flags ``argv`` (default: the command line). UserError if flags, data or a file are wrong."""
    train_method(FFL, parse_args(argv))


if __name__ == "__main__":
    utils.command(main)
