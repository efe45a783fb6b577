"""Deep mutual learning (Zhang et al. 2018): m whole networks that teach each other.

    python train_DML.py --model resnet32 --dataset CIFAR10
    python train_DML.py --model resnet32 --dataset CIFAR10 --type pairwise
    python train_DML.py --models resnet32 resnet20 vgg16 --dataset CIFAR10     # different networks

Each network's target is the mean of the others' logits, or the logits of each of them. The loss is ``losses.dml_loss``.

Measured, test error of the last epoch in the older study (results/), mean of the networks: 37.92 ± 2.76 % (3 seeds).
With --detach_targets: 32.62 ± 0.72 % (3 seeds).
"""

import utils


def parse_args(argv: list[str] | None):
    """The flags of this script."""
    parser = utils.Parser(__doc__)
    g = utils.distillation_flags(parser, "deep mutual learning")
    utils.group_flags(g, "networks", based_on="networks", mixed=True)
    g.add_argument("--type", default="ensemble", choices=("ensemble", "pairwise"),
                   help="target: mean of the other networks, or each of them")
    g.add_argument("--detach_targets", action="store_true",
                   help="no gradient through the targets, as in DML's paper (default: it flows, as in the code of "
                        "OKDDip's authors)")
    return utils.parse(parser, argv)


if __name__ == "__main__":
    utils.before_pytorch(parse_args)  # --help, wrong flags and a finished run end here

import models
from losses import dml_loss
from training.loop import train_method
from training.method import Group
from training.outputs import group_outputs


class DML(Group):
    """m networks, each with a target made of the others."""

    def __init__(self, args, num_classes: int):
        super().__init__(args, models.Branches(args.models or args.model, num_classes, args.num_branches,
                                               network_based=True, **utils.network_options(args)))

    @classmethod
    def name(cls, args) -> str:
        kind = "DML-pairwise" if args.type == "pairwise" else "DML"
        return kind + ("-detach_targets" if args.detach_targets else "")

    def loss(self, model, images, labels, weight):
        z = model(images)  # [B, m, C]
        args = self.args
        terms = dml_loss(z, labels, args.temperature, args.loss, args.type == "pairwise", args.detach_targets)
        return terms, group_outputs(z)


def main(argv: list[str] | None = None) -> None:
    """Train with the flags ``argv`` (default: the command line). UserError if flags, data or a file are wrong."""
    train_method(DML, parse_args(argv))


if __name__ == "__main__":
    utils.command(main)
