"""Baseline: one network, trained on the labels alone.

    python train.py --model resnet32 --dataset CIFAR10

    L = CE(z, y)

Measured, resnet8, 8 epochs of a JPEG copy of CIFAR-10, three seeds (results/), test error of the last epoch:
25.84 ± 0.45 %.
"""

import engine
import models
import utils
from losses import individual_loss
from run import Run


def build(args, num_classes: int):
    """The network and what is measured of it: -> model, rows, predict (see engine.Method)."""
    model = models.create_model(args.model, num_classes, **utils.network_options(args))

    def predict(model, images):
        return model(images).unsqueeze(1), {}

    return model, {"": "network"}, predict


def main(argv: list[str] | None = None) -> None:
    """Train with the flags ``argv`` (default: the command line's); UserError where they, data or a file are wrong."""
    args = utils.parse(utils.Parser(__doc__), argv)
    run = Run(args)
    model, rows, predict = build(args, run.num_classes)

    def objective(model, images, labels, weight):
        z = model(images)  # [B, C]
        return individual_loss(z, labels), z.unsqueeze(1)

    engine.fit(run, model, engine.Method(rows, objective, predict, best="test_accTop1"))


if __name__ == "__main__":
    utils.command(main)
