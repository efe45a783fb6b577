"""OKDPH (Zhang et al., Parameter Hybridization, CVPR 2023): networks and the hybrid of their weights.

    python train_OKDPH.py --model resnet32 --dataset CIFAR10

    z_i of view i, z_hybrid of view m + 1         each network and the hybrid have their own crop and flip
    theta_hybrid = sum_i r_i theta_i              before each step; r_i = 1/m, or r ~ Dirichlet(1) in each step
    t = mean of all m + 1 logits
    L = sum_i [omega CE(z_i, y) + (1 - omega) CE(z_hybrid, y) + beta T^2 KL(sg t || z_i)]
    theta_i <- gamma theta_hybrid + (1 - gamma) theta_i        after each epoch, weights and BatchNorm statistics

sg: no gradient. Networks begin with the same weights. T = 4, omega = beta = 0.8, gamma = 0.5 as in the authors' public
code, which has m = 2. There, weights are copied into the hybrid, so CE(z_hybrid) gives no network a gradient
(--hybrid_copy); in the formula, and here, network i gets r_i times the gradient of the hybrid. The hybrid with r_i =
1/m is deployed. Not part of the method here: their augmentations (cutout, AutoAugment). A view is one crop and flip.

Measured, test error of the last epoch in the small study (results/), hybrid: 28.77 ± 0.79 % (3 seeds).
"""

import numpy as np
import torch

import models
import utils
from data_loader import dataloader
from losses import okdph_loss
from training.loop import fit
from training.method import Group
from training.outputs import LEADER
from training.run import Run


def parse_args(argv: list[str] | None):
    """The flags of this script. Wrong flags end the program with one line and exit code 2."""
    parser = utils.Parser(__doc__)
    g = utils.distillation_flags(parser, "OKDPH", temperature=4.0)
    utils.group_flags(g, "networks, without the hybrid (authors' code: 2)", based_on="networks")
    share = utils.number(float, 0, high=1)
    g.add_argument("--omega", default=0.8, type=share, help="weight of the networks' CE; the hybrid's is 1 - omega")
    g.add_argument("--beta", default=0.8, type=utils.number(float, 0), help="weight of the distillation")
    g.add_argument("--gamma", default=0.5, type=share, help="share of the hybrid in the networks after each epoch")
    g.add_argument("--hybrid", default="mean", choices=("mean", "dirichlet"), help="r: 1/m, or drawn in each step")
    g.add_argument("--hybrid_copy", action="store_true", help="no gradient from the hybrid, as in the public code")
    return utils.parse(parser, argv)


class OKDPH(Group):
    """m networks and their hybrid, which is deployed."""

    def __init__(self, args, num_classes: int):
        super().__init__(args, models.OKDPH(args.model, num_classes, args.num_branches, args.hybrid_copy,
                                            **utils.network_options(args)), deployed="hybrid")

    @classmethod
    def name(cls, args) -> str:
        return "OKDPH" + "-dirichlet" * (args.hybrid == "dirichlet") + "-hybrid_copy" * args.hybrid_copy

    def before_step(self, step: int) -> None:
        m = self.args.num_branches
        if self.args.hybrid == "mean":
            self.model.r.fill_(1 / m)
        else:  # from the seed and the step: the same in every process, and resumable
            r = np.random.default_rng((self.args.seed, step)).dirichlet(np.ones(m))
            self.model.r.copy_(torch.from_numpy(r.astype(np.float32)), non_blocking=True)

    @classmethod
    def views(cls, args) -> int:
        return args.num_branches + 1  # the last one is the hybrid's

    def loss(self, model, images, labels, weight):
        args = self.args
        z, z_hybrid = model(images)  # views [B, m + 1, 3, H, W] -> [B, m, C], [B, C]
        terms = okdph_loss(z, z_hybrid, labels, args.temperature, args.omega, args.beta, args.loss)
        return terms, self.with_hybrid(z, z_hybrid)

    def after_epoch(self, held_out, autocast, watch=iter) -> None:
        self.model.share(self.args.gamma)

    def deploy(self) -> None:
        self.model.deploy()  # a checkpoint from within an epoch holds the hybrid of the last step

    def predict(self, images):
        return self.with_hybrid(*self.model(images)), {}

    def with_hybrid(self, z, z_hybrid):  # [B, m, C], [B, C] -> [B, m+2, C]: hybrid, each network, their ensemble
        return torch.cat([z_hybrid.unsqueeze(1), self.measured(z)], 1)

    def network(self, output: str):
        return self.model.hybrid if output == LEADER else super().network(output)


def main(argv: list[str] | None = None) -> None:
    """Train with the flags ``argv`` (default: the command line). UserError if flags, data or a file are wrong."""
    args = parse_args(argv)
    run = Run(args, OKDPH.name(args))
    train_loader, test_loader = dataloader(**utils.data_options(args), views=OKDPH.views(args), device=run.device)
    method = OKDPH(args, train_loader.num_classes)
    fit(method, train_loader, test_loader, run)


if __name__ == "__main__":
    utils.command(main)
