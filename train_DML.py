"""Deep mutual learning (Zhang et al. 2018): m whole networks that teach each other.

    python train_DML.py --model resnet32 --dataset CIFAR10
    python train_DML.py --model resnet32 --dataset CIFAR10 --type pairwise

    L = sum_i CE(z_i, y) + sum_i T^2 KL(t_i || z_i),                       t_i = mean of the other networks' logits
    L = sum_i CE(z_i, y) + sum_{i != j} T^2 KL(z_j || z_i) / (m - 1)       pairwise

Measured, resnet8, 8 epochs of a JPEG copy of CIFAR-10, three seeds (results/), test error of the last epoch:
the networks' mean 27.13 ± 0.31 %.
"""

import torch

import engine
import models
import utils
from losses import dml_loss
from run import Run


def parse_args(argv: list[str] | None):
    """The flags of this script; exit code 2 with one line where they contradict each other."""
    parser = utils.Parser(__doc__)
    g = utils.distillation_flags(parser, "deep mutual learning")
    utils.group_flags(g, "networks", network_based=True)
    g.add_argument("--type", default="ensemble", choices=("ensemble", "pairwise"),
                   help="a network learns from the mean of the others, or from each of them")
    return utils.parse(parser, argv)


def measured(z):  # [B, m, C] -> [B, m+1, C]: each network and the ensemble, their mean
    return torch.cat([z, z.mean(1, keepdim=True)], 1)


def build(args, num_classes: int):
    """The networks and what is measured of them: -> model, rows, predict (see engine.Method)."""
    model = models.Branches(args.model, num_classes, args.num_branches, network_based=True,
                            **utils.network_options(args))
    rows = {f"stu{i}": f"student {i}" for i in range(args.num_branches)} | {"": "ensemble"}

    def predict(model, images):
        return measured(model(images)), {}

    return model, rows, predict


def main(argv: list[str] | None = None) -> None:
    """Train with the flags ``argv`` (default: the command line's); UserError where they, data or a file are wrong."""
    args = parse_args(argv)
    pairwise = args.type == "pairwise"
    run = Run(args, "DML-pairwise" if pairwise else "DML")
    model, rows, predict = build(args, run.num_classes)

    def objective(model, images, labels, weight):
        z = model(images)  # [B, m, C]
        return dml_loss(z, labels, args.temperature, args.loss, pairwise), measured(z)

    engine.fit(run, model, engine.Method(
        rows, objective, predict, best="test_accTop1" if args.choose_E else "mean_test_accTop1"))


if __name__ == "__main__":
    utils.command(main)
