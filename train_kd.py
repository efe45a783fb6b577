"""Classic knowledge distillation (Hinton et al. 2015): one network and a frozen teacher that was trained before it.

    python train.py --model resnet110 --dataset CIFAR10
    python train_kd.py --model resnet32 --T_model resnet110 --T_model_path ./CIFAR10/resnet110 --dataset CIFAR10

    L = CE(z, y) + alpha T^2 KL(z_teacher || z)
"""

from pathlib import Path

import torch

import engine
import models
import utils
from losses import kd_loss
from run import Run, load_weights


def parse_args(argv: list[str] | None):
    parser = utils.parser(__doc__)
    g = utils.distillation_flags(parser, "knowledge distillation")
    g.add_argument("--alpha", default=1.0, type=utils.number(float, 0), help="weight of the distillation loss")
    g.add_argument("--T_model", default="resnet110", choices=models.NETWORKS, metavar="NAME", help="teacher network")
    g.add_argument("--T_model_path", metavar="RUN",
                   help="the teacher's run folder or checkpoint file (default: <save_dir>/<dataset>/<T_model>)")
    args = utils.parse(parser, argv)
    args.T_model_path = args.T_model_path or str(Path(args.save_dir, args.dataset, args.T_model))
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    run = Run(args, "KD")
    model = models.create_model(args.model, run.num_classes, **utils.network_options(args))
    teacher = models.create_model(args.T_model, run.num_classes)
    load_weights(teacher, args.T_model_path)
    teacher.to(run.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def objective(model, images, labels, weight):
        with torch.no_grad():
            t = teacher(images)  # [B, C]
        z = model(images)  # [B, C]
        return kd_loss(z, t, labels, args.temperature, args.alpha, args.loss), z.unsqueeze(1)

    def predict(model, images):
        return model(images).unsqueeze(1), {}

    engine.fit(run, model, engine.Method([""], objective, predict, best="test_accTop1"))


if __name__ == "__main__":
    utils.command(main)
