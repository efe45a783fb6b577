"""Peer Collaborative Learning (PCL, Wu & Gong, AAAI 2021): peers learn from their ensemble and from mean peers.

    python train_PCL.py --model resnet32 --dataset CIFAR10

Each peer (branch) has its own view of an image: its own crop and flip. Their ensemble is a classifier of all features.
The mean peers are updated after each step (``models.PCL``). The loss is ``losses.pcl_loss``; --alpha (default 1, not in
the paper) multiplies both w(e). Mean peer 0, the paper's "first peer", is deployed. The paper has m = 3.

Measured: not yet.
"""

import utils


def parse_args(argv: list[str] | None):
    """The flags of this script."""
    parser = utils.Parser(__doc__)
    g = utils.distillation_flags(parser, "PCL")
    utils.ramp_up_flags(g)
    utils.group_flags(g, "peers (paper: 3)", based_on="branches")
    return utils.parse(parser, argv)


if __name__ == "__main__":
    utils.before_pytorch(parse_args)  # --help, wrong flags and a finished run end here

import models
from losses import pcl_loss
from training.loop import train_method
from training.method import Group
from training.outputs import EMA_ENSEMBLE, FUSED, LEADER, ema, group_outputs, student_number


class PCL(Group):
    """m peers, their ensemble, and the mean peers, the first of which is deployed."""

    def __init__(self, args, num_classes: int):
        super().__init__(args, models.PCL(args.model, num_classes, args.num_branches, **utils.network_options(args)),
                         kind="peer", deployed="deployed (mean peer 0)")
        mean_peers = {ema(i): f"mean peer {i}" for i in range(args.num_branches)}
        self.outputs |= {FUSED: "peer ensemble"} | mean_peers | {EMA_ENSEMBLE: "ensemble of the mean peers"}

    @classmethod
    def views(cls, args) -> int:
        return args.num_branches

    def loss(self, model, images, labels, weight):
        args = self.args
        z, s, z_mean = model(images)  # views [B, m, 3, H, W] -> [B, m, C], [B, C], [B, m, C]
        terms = pcl_loss(z, s, z_mean, labels, weight, args.temperature, args.alpha, args.loss)
        return terms, self.measured(z, s, z_mean)

    def after_step(self, step: int, step_of_epoch: int) -> None:
        self.model.update_mean(step)

    def measured(self, z, s, z_mean):  # [B, m, C], [B, C], [B, m, C]
        return {LEADER: z_mean[:, 0]} | group_outputs(z) | {FUSED: s} | group_outputs(z_mean, ema, EMA_ENSEMBLE)

    def network(self, output: str):
        return self.model.mean.student(0) if output == LEADER else self.model.peers.student(student_number(output))


def main(argv: list[str] | None = None) -> None:
    """Train with the flags ``argv`` (default: the command line). UserError if flags, data or a file are wrong."""
    train_method(PCL, parse_args(argv))


if __name__ == "__main__":
    utils.command(main)
