"""KDCL (Guo et al., CVPR 2020): whole networks, which may differ, learn from one target of all.

    python train_KDCL.py --model resnet32 --dataset CIFAR10
    python train_KDCL.py --models resnet32 resnet20 vgg16 --dataset CIFAR10 --target minlogit

Each network has its own view of an image: its own crop and flip. The loss is ``losses.kdcl_loss``; the rules for the
target are in models/kdcl.py. The paper has four: naive, linear (not implemented here), minlogit, general. The default,
mean, is none of them. It is what public ports and other papers' comparisons use; tables call it "KDCL (mean)".

Our interpretation of the paper: the distillation has the weight 1 and T = 2. Two independent notes on the paper support
this; one port has 0.5 and T = 4. The weights of general are optimal for mixing probabilities, but here they mix logits.

Measured, test error of the last epoch in the older study (results/), mean of the networks:
mean 31.64 ± 0.72 % (3 seeds), minlogit 35.42 ± 1.66 % (3 seeds).
"""

import utils


def parse_args(argv: list[str] | None):
    """The flags of this script."""
    parser = utils.Parser(__doc__)
    g = utils.distillation_flags(parser, "KDCL", temperature=2.0)
    utils.group_flags(g, "networks", based_on="networks", mixed=True)
    g.add_argument("--target", default="mean", choices=("mean", "naive", "minlogit", "general"),
                   help="mean of the logits; naive: those of the network with the least CE, for each image; minlogit: "
                        "the least logit relative to the label's, for each class; general: weighted sum with the "
                        "least error on held-out images (--val_size), new after each epoch")
    return utils.parse(parser, argv)


if __name__ == "__main__":
    utils.before_pytorch(parse_args)  # --help, wrong flags and a finished run end here

import models
from losses import full_precision, kdcl_loss
from models.kdcl import error_products
from runtime.errors import UserError
from training.loop import train_method
from training.method import Group
from training.metrics import evaluate
from training.outputs import group_outputs


class KDCL(Group):
    """m networks and their common target."""

    def __init__(self, args, num_classes: int):
        super().__init__(args, models.KDCL(args.models or args.model, num_classes, args.num_branches, args.target,
                                           **utils.network_options(args)))

    def prepare(self, train_loader) -> None:
        if self.args.target == "general" and train_loader.held_out is None:  # class folders may have their own, in val/
            raise UserError("--target general measures its weights on held-out images: add --val_size N", True)

    @classmethod
    def name(cls, args) -> str:
        return "KDCL" if args.target == "mean" else f"KDCL-{args.target}"

    @classmethod
    def views(cls, args) -> int:
        return args.num_branches

    def loss(self, model, images, labels, weight):
        z = full_precision(model(images))  # views [B, m, 3, H, W] -> [B, m, C]
        t = self.model.target(z.detach(), labels)  # [B, C]
        return kdcl_loss(z, t, labels, self.args.temperature, self.args.loss), group_outputs(z)

    def after_epoch(self, held_out, autocast, watch=iter) -> None:
        if self.args.target != "general":
            return
        m = self.args.num_branches

        def products(log_p, top1, labels):
            return {"C": error_products(log_p[:, :m], labels)}  # the first m outputs are the networks

        C = evaluate(self, held_out, "val", autocast, watch, more_sums=products)["C"]  # [m][m]
        self.model.set_weights(C)


def main(argv: list[str] | None = None) -> None:
    """Train with the flags ``argv`` (default: the command line). UserError if flags, data or a file are wrong."""
    train_method(KDCL, parse_args(argv))


if __name__ == "__main__":
    utils.command(main)
