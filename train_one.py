"""Branch-based methods to compare OKDDip with: ONE, collaborative learning (CL, CL-ILR), individual branches.

    python train_one.py --model resnet32 --dataset CIFAR10                    # ONE (Lan et al. 2018)
    python train_one.py --model resnet32 --dataset CIFAR10 --avg --bpscale    # CL-ILR (Song & Chai 2018)
    python train_one.py --model resnet32 --dataset CIFAR10 --avg              # CL: the same without rescaling
    python train_one.py --model resnet32 --dataset CIFAR10 --ind              # individual branches

    ONE     e = sum_i g_i z_i, g the gate, teaches each branch     losses.one_loss
    CL      t_i, the mean of the others, teaches branch i          losses.cl_ilr_loss
    CL-ILR  the same, and the gradient that enters the shared trunk is divided by m
    Ind     no distillation                                        losses.individual_loss

Measured, test error of the last epoch, mean of the branches, resnet20 (results/). 10,000 images of CIFAR-100:
ONE 50.84 ± 0.36 % (5 seeds), CL-ILR 51.82 ± 0.50 % (5 seeds), Ind 52.25 ± 0.28 % (5 seeds).
"""

import utils
from runtime.rank import world_size


def parse_args(argv: list[str] | None):
    """The flags of this script."""
    parser = utils.Parser(__doc__)
    g = utils.distillation_flags(parser, "ONE, CL-ILR, individual branches")
    utils.ramp_up_flags(g)
    utils.group_flags(g, "branches", mixed=True)
    g.add_argument("--avg", action="store_true", help="CL: target is the mean of the other branches")
    g.add_argument("--bpscale", action="store_true", help="CL-ILR: with --avg, divide the trunk's gradient by m")
    g.add_argument("--ind", action="store_true", help="individual branches, no distillation")
    args = utils.parse(parser, argv)
    one = not (args.avg or args.ind)
    parser.refuse("bpscale", args.bpscale and not args.avg, "belongs to CL-ILR, add --avg")
    parser.refuse("ind", args.ind and args.avg, "individual branches have no targets, leave out --avg or --ind")
    parser.refuse("MulStu", args.MulStu and args.bpscale, "--bpscale needs a trunk, and whole networks share no trunk")
    parser.refuse("MulStu", args.MulStu and one, "ONE's gate needs a shared trunk, add --ind or --avg")
    parser.refuse("batch_size", one and args.batch_size < 2 * world_size(),
                  "the BatchNorm in ONE's gate needs at least 2 images in each process")
    return args


if __name__ == "__main__":
    utils.before_pytorch(parse_args)  # --help, wrong flags and a finished run end here

import models
from losses import cl_ilr_loss, individual_loss, one_loss
from training.loop import train_method
from training.method import Group
from training.outputs import GATE, group_outputs


class Ind(Group):
    """Individual branches: they share only the trunk (with --MulStu: nothing)."""

    def __init__(self, args, num_classes: int):
        super().__init__(args, models.Branches(args.models or args.model, num_classes, args.num_branches, args.MulStu,
                                               **utils.network_options(args)))

    def loss(self, model, images, labels, weight):
        z = model(images)  # [B, m, C]
        return individual_loss(z, labels), group_outputs(z)


class CollaborativeLearning(Group):
    """CL: each branch learns from the mean of the others. --bpscale makes it CL-ILR."""

    def __init__(self, args, num_classes: int):
        super().__init__(args, models.CLILR(args.models or args.model, num_classes, args.num_branches, args.bpscale,
                                            args.MulStu, **utils.network_options(args)))

    @classmethod
    def name(cls, args) -> str:
        return ("CL-ILR" if args.bpscale else "CL") + ("-N" if args.MulStu else "")

    def loss(self, model, images, labels, weight):
        args = self.args
        z, t = model(images)  # [B, m, C] each
        return cl_ilr_loss(z, t, labels, weight, args.temperature, args.alpha, args.loss), group_outputs(z)


class ONE(Group):
    """ONE: the gated ensemble e of the branches teaches each of them."""

    def __init__(self, args, num_classes: int):
        super().__init__(args, models.ONE(args.model, num_classes, args.num_branches, **utils.network_options(args)))
        self.outputs = self.outputs | {GATE: "gated ensemble"}

    def loss(self, model, images, labels, weight):
        args = self.args
        z, e = model(images)  # [B, m, C], [B, C]
        return one_loss(z, e, labels, weight, args.temperature, args.alpha, args.loss), self.measured(z, e)

    def measured(self, z, e):  # [B, m, C], [B, C]
        return group_outputs(z) | {GATE: e}


def main(argv: list[str] | None = None) -> None:
    """Train with the flags ``argv`` (default: the command line). UserError if flags, data or a file are wrong."""
    args = parse_args(argv)
    train_method(Ind if args.ind else CollaborativeLearning if args.avg else ONE, args)


if __name__ == "__main__":
    utils.command(main)
