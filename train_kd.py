"""Classic knowledge distillation (Hinton et al. 2015): a network learns from a frozen, pre-trained teacher.

    python train.py --model resnet110 --dataset CIFAR10
    python train_kd.py --model resnet32 --T_model resnet110 --T_model_path ./CIFAR10/resnet110 --dataset CIFAR10

The loss is ``losses.kd_loss``.

Measured, test error of the last epoch in the older study (results/): 40.13 ± 1.03 % (3 seeds).
The teacher of that study is worse than its students (results/README.md).
"""

import utils


def parse_args(argv: list[str] | None):
    """The flags of this script."""
    parser = utils.Parser(__doc__)
    g = utils.distillation_flags(parser, "knowledge distillation")
    g.add_argument("--alpha", default=1.0, type=utils.number(float, 0), help="weight of the distillation loss")
    utils.teacher_flags(g, "resnet110", "pre-trained network")
    return utils.parse(parser, argv)


if __name__ == "__main__":
    utils.before_pytorch(parse_args)  # --help, wrong flags and a finished run end here

from deployment.reading import load_teacher
from losses import kd_loss
from train import Baseline
from training.loop import train_method
from training.outputs import WHOLE


class KD(Baseline):
    """The baseline's network and a teacher."""

    @classmethod
    def name(cls, args) -> str:
        return "KD"

    def prepare(self, train_loader) -> None:
        args = self.args
        self.teacher = load_teacher(args.T_model, utils.teacher_path(args), train_loader)

    def loss(self, model, images, labels, weight):
        args, t, z = self.args, self.teacher(images), model(images)  # [B, C] each
        return kd_loss(z, t, labels, args.temperature, args.alpha, args.loss), {WHOLE: z}


def main(argv: list[str] | None = None) -> None:
    """Train with the flags ``argv`` (default: the command line). UserError if flags, data or a file are wrong."""
    train_method(KD, parse_args(argv))


if __name__ == "__main__":
    utils.command(main)
