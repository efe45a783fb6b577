"""Classic knowledge distillation (Hinton et al. 2015): one network and a frozen teacher that was trained before it.

    python train.py --model resnet110 --dataset CIFAR10
    python train_kd.py --model resnet32 --T_model resnet110 --T_model_path ./CIFAR10/resnet110 --dataset CIFAR10

    L = CE(z, y) + alpha T^2 KL(z_teacher || z)

Measured, resnet8, 8 epochs of a JPEG copy of CIFAR-10, three seeds (results/), test error of the last epoch:
21.64 ± 0.12 %, from a resnet20 of the same training (19.29 %); train.py alone 25.84 ± 0.45 %.
"""

import engine
import utils
from losses import kd_loss
from run import Run, load_teacher
from train import build


def parse_args(argv: list[str] | None):
    """The flags of this script; exit code 2 with one line where they contradict each other."""
    parser = utils.Parser(__doc__)
    g = utils.distillation_flags(parser, "knowledge distillation")
    g.add_argument("--alpha", default=1.0, type=utils.number(float, 0), help="weight of the distillation loss")
    utils.teacher_flags(g, "resnet110", "teacher network")
    return utils.parse(parser, argv)


def main(argv: list[str] | None = None) -> None:
    """Train with the flags ``argv`` (default: the command line's); UserError where they, data or a file are wrong."""
    args = parse_args(argv)
    run = Run(args, "KD")
    model, rows, predict = build(args, run.num_classes)  # the baseline's: a plain network
    teacher = load_teacher(args, run)

    def objective(model, images, labels, weight):
        t, z = teacher(images), model(images)  # [B, C] each
        return kd_loss(z, t, labels, args.temperature, args.alpha, args.loss), z.unsqueeze(1)

    engine.fit(run, model, engine.Method(rows, objective, predict, best="test_accTop1"))


if __name__ == "__main__":
    utils.command(main)
