"""OKDPH (Zhang et al., Parameter Hybridization, CVPR 2023): networks and the hybrid of their weights.

    python train_OKDPH.py --model resnet32 --dataset CIFAR10

All networks start from the same weights, and each has its own loss (``losses.okdph_loss``). Each network and the hybrid
have their own view of an image. Before each step the hybrid is set to a mixture of the networks. In a fusion, every
--interval, the networks move towards the hybrid (``models.OKDPH``).

The defaults of --omega, --beta, --gamma and --interval are those of the authors' public code for ResNet-32 on CIFAR-10;
scripts/later.sh has its others. m is 4 (there 2). Weights are copied into the hybrid, so its cross-entropy gives no
gradient; --hybrid_gradient follows the paper's equation. Measured and deployed is the hybrid with r_i = 1/m of the
weights at the end of the epoch, before the fusion. docs/equations.md has the other differences.

Measured: not yet.
"""

import utils


def parse_args(argv: list[str] | None):
    """The flags of this script."""
    parser = utils.Parser(__doc__)
    g = utils.distillation_flags(parser, "OKDPH", temperature=4.0)
    utils.group_flags(g, "networks (authors' code: 2)", based_on="networks")
    share = utils.number(float, 0, high=1)
    g.add_argument("--omega", default=0.8, type=share, help="weight of the networks' CE; the hybrid's is 1 - omega")
    g.add_argument("--beta", default=0.8, type=utils.number(float, 0), help="weight of the distillation")
    g.add_argument("--gamma", default=0.5, type=share, help="share of the hybrid in the networks after a fusion")
    g.add_argument("--interval", default="1_epoch", choices=("1_epoch", "5_batch"),
                   help="fusion after each epoch and its evaluation, or after steps 1, 6, 11, ... of each epoch")
    g.add_argument("--hybrid", default="mean", choices=("mean", "dirichlet"),
                   help="r: 1/m, or drawn from Dirichlet(1) in each step, as in the paper")
    g.add_argument("--hybrid_gradient", action="store_true",
                   help="the gradient of CE(z_hybrid) reaches the networks, as in the paper")
    return utils.parse(parser, argv)


if __name__ == "__main__":
    utils.before_pytorch(parse_args)  # --help, wrong flags and a finished run end here

import numpy as np
import torch

import models
from losses import okdph_loss
from training.loop import train_method
from training.method import Group
from training.outputs import LEADER, group_outputs


class OKDPH(Group):
    """m networks and their hybrid, which is deployed."""

    def __init__(self, args, num_classes: int):
        super().__init__(args, models.OKDPH(args.model, num_classes, args.num_branches, args.hybrid_gradient,
                                            **utils.network_options(args)), deployed="hybrid")

    @classmethod
    def name(cls, args) -> str:
        return "OKDPH" + "-dirichlet" * (args.hybrid == "dirichlet") + "-hybrid_gradient" * args.hybrid_gradient

    def before_step(self, step: int, step_of_epoch: int) -> None:
        args = self.args
        if args.interval == "1_epoch" and step_of_epoch == 1 < step:
            # The fusion after the previous epoch. It is here because that epoch is evaluated and saved before it.
            self.model.share(args.gamma)
        if args.hybrid == "mean":
            self.model.r.fill_(1 / args.num_branches)
        else:  # from the seed and the step: the same in every process, and resumable
            r = np.random.default_rng((args.seed, step)).dirichlet(np.ones(args.num_branches))
            self.model.r.copy_(torch.from_numpy(r.astype(np.float32)), non_blocking=True)

    def after_step(self, step: int, step_of_epoch: int) -> None:
        if self.args.interval == "5_batch" and step_of_epoch % 5 == 1:
            self.model.share(self.args.gamma)

    @classmethod
    def views(cls, args) -> int:
        return args.num_branches + 1  # the last one is the hybrid's

    def loss(self, model, images, labels, weight):
        args = self.args
        z, z_hybrid = model(images)  # views [B, m + 1, 3, H, W] -> [B, m, C], [B, C]
        terms = okdph_loss(z, z_hybrid, labels, args.temperature, args.omega, args.beta, args.loss)
        return terms, self.measured(z, z_hybrid)

    def deploy(self) -> None:
        self.model.deploy()  # a checkpoint has the hybrid of the last step

    def measured(self, z, z_hybrid):  # [B, m, C], [B, C]
        return {LEADER: z_hybrid} | group_outputs(z)

    def network(self, output: str):
        return self.model.hybrid if output == LEADER else super().network(output)


def main(argv: list[str] | None = None) -> None:
    """Train with the flags ``argv`` (default: the command line). UserError if flags, data or a file are wrong."""
    train_method(OKDPH, parse_args(argv))


if __name__ == "__main__":
    utils.command(main)
