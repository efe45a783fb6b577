"""The branch-based rivals of OKDDip: ONE, collaborative learning (CL, CL-ILR), and individual branches.

    python train_one.py --model resnet32 --dataset CIFAR10                    # ONE (Lan et al. 2018)
    python train_one.py --model resnet32 --dataset CIFAR10 --avg --bpscale    # CL-ILR (Song & Chai 2018)
    python train_one.py --model resnet32 --dataset CIFAR10 --avg              # CL: the same without rescaling
    python train_one.py --model resnet32 --dataset CIFAR10 --ind              # individual branches

    ONE     L = sum_i CE(z_i, y) + CE(e, y) + alpha w(e) sum_i T^2 KL(e || z_i),   e = sum_i g_i z_i, g the gate
    CL      L = sum_i CE(z_i, y) + alpha w(e) sum_i T^2 KL(t_i || z_i),            t_i = mean of the other branches
    CL-ILR  the same, and the gradient that enters the shared trunk is divided by m
    Ind     L = sum_i CE(z_i, y)

Measured, resnet8, 8 epochs of a JPEG copy of CIFAR-10, three seeds (results/), test error of the last epoch:
the branches' mean 25.55 ± 0.36 % (ONE), 25.78 ± 0.70 % (CL-ILR), 25.26 ± 0.31 % (Ind).
"""

import torch

import engine
import models
import parallel
import utils
from losses import cl_ilr_loss, individual_loss, one_loss, ramp_up
from run import Run


def parse_args(argv: list[str] | None):
    """The flags of this script; exit code 2 with one line where they contradict each other."""
    parser = utils.Parser(__doc__)
    g = utils.distillation_flags(parser, "ONE, CL-ILR, individual branches")
    utils.ramp_up_flags(g)
    utils.group_flags(g, "branches")
    g.add_argument("--avg", action="store_true", help="CL: learn from the mean of the other branches, not from a gate")
    g.add_argument("--bpscale", action="store_true", help="CL-ILR: with --avg, divide the trunk's gradient by m")
    g.add_argument("--ind", action="store_true", help="individual branches, no distillation")
    args = utils.parse(parser, argv)
    if args.bpscale and not args.avg:
        parser.error("argument --bpscale: belongs to CL-ILR, add --avg")
    if args.ind and args.avg:
        parser.error("argument --ind: individual branches do not learn from a mean, leave out --avg or --ind")
    if args.MulStu and args.bpscale:
        parser.error("argument --MulStu: whole networks share no trunk whose gradient --bpscale could divide")
    if args.MulStu and not (args.avg or args.ind):
        parser.error("argument --MulStu: ONE's gate needs a shared trunk, add --ind or --avg")
    if args.batch_size < 2 * parallel.world_size() and not (args.avg or args.ind):
        parser.error("argument --batch_size: the BatchNorm in ONE's gate needs at least 2 images in each process")
    return args


def method_name(args) -> str:
    """The folder of the method's runs."""
    name = "Ind" if args.ind else "CL-ILR" if args.bpscale else "CL" if args.avg else "ONE"
    return f"{name}-N" if args.MulStu else name


def measured(z, e=None):  # [B, m, C], [B, C] -> [B, m+1, C]: each student, their mean; [B, m+2, C] with ONE's e
    return torch.cat([z, z.mean(1, keepdim=True), *([] if e is None else [e.unsqueeze(1)])], 1)


def build(args, num_classes: int):
    """The group and what is measured of it: -> model, rows, predict (see engine.Method)."""
    options = {"num_classes": num_classes, "num_branches": args.num_branches, **utils.network_options(args)}
    rows = {f"stu{i}": f"student {i}" for i in range(args.num_branches)} | {"": "ensemble"}

    if args.ind:
        model = models.Branches(args.model, network_based=args.MulStu, **options)

        def predict(model, images):
            return measured(model(images)), {}

    elif args.avg:
        model = models.CLILR(args.model, rescale=args.bpscale, network_based=args.MulStu, **options)

        def predict(model, images):
            z, _ = model(images)
            return measured(z), {}

    else:
        model = models.ONE(args.model, **options)
        rows["gate_"] = "gated ensemble"

        def predict(model, images):
            return measured(*model(images)), {}

    return model, rows, predict


def main(argv: list[str] | None = None) -> None:
    """Train with the flags ``argv`` (default: the command line's); UserError where they, data or a file are wrong."""
    args = parse_args(argv)
    run = Run(args, method_name(args))
    model, rows, predict = build(args, run.num_classes)
    hyper = (args.temperature, args.alpha, args.loss)

    def individual(model, images, labels, weight):
        z = model(images)  # [B, m, C]
        return individual_loss(z, labels), measured(z)

    def collaborative(model, images, labels, weight):
        z, t = model(images)  # [B, m, C] twice
        return cl_ilr_loss(z, t, labels, weight, *hyper), measured(z)

    def one(model, images, labels, weight):
        z, e = model(images)  # [B, m, C], [B, C]
        return one_loss(z, e, labels, weight, *hyper), measured(z, e)

    objective = individual if args.ind else collaborative if args.avg else one
    engine.fit(run, model, engine.Method(
        rows, objective, predict, best="test_accTop1" if args.choose_E else "mean_test_accTop1",
        weight=lambda epoch: ramp_up(epoch, run.num_epochs, args.start_consistency, args.length)))


if __name__ == "__main__":
    utils.command(main)
