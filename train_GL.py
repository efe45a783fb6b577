"""OKDDip (Chen et al., AAAI 2020): auxiliary peers that attend to each other, and a group leader that they teach.

    python train_GL.py --model resnet32 --dataset CIFAR10
    python train_GL.py --model resnet32 --dataset CIFAR10 --MulStu       # whole networks instead of branches

    alpha_ab = softmax_b((W_L h_a) . (W_E h_b))          attention of peer a, over all m - 1 peers
    t_a      = sum_b alpha_ab z_b                        its own target
    L_true   = sum_a CE(z_a, y) + CE(z_leader, y)
    L_group  = sum_a T^2 KL(t_a || z_a) + T^2 KL(mean_a z_a || z_leader)
    L        = L_true + alpha w(e) L_group               (+ alpha T^2 KL(teacher || z) for each student, with --T_model)

Measured, resnet8, 8 epochs of a JPEG copy of CIFAR-10, three seeds (results/), test error of the last epoch:
the leader's 25.44 ± 0.45 %, network-based 26.11 ± 0.42 %. So short a run says that it learns, not which method is best.
"""

import torch

import engine
import models
import utils
from losses import okddip_loss, ramp_up
from run import Run, load_teacher


def parse_args(argv: list[str] | None):
    """The flags of this script; exit code 2 with one line where they contradict each other."""
    parser = utils.Parser(__doc__)
    g = utils.distillation_flags(parser, "OKDDip")
    utils.ramp_up_flags(g)
    utils.group_flags(g, "students, the leader among them")
    g.add_argument("--aggregation", default="attention", choices=models.AGGREGATIONS,
                   help="what weighs the peers in a target (Table 5; the paper names these and does not spell them "
                        "out, so all but attention are this project's reading): mean, 1/peers; random, softmax of "
                        "normal draws; entropy, a surer peer weighs more; symmetric, W_L = W_E; besides, not "
                        "the paper's: others, attention to all peers but itself")
    g.add_argument("--detach_targets", action="store_true",
                   help="no gradient through the targets, not the paper's: W_L and W_E stay as drawn")
    g.add_argument("--no_leader", action="store_true",
                   help="all students are peers, and their ensemble is what is deployed (Tables 4 and 5)")
    utils.teacher_flags(g, None, "a pre-trained teacher besides, for every student (Table 6)")
    args = utils.parse(parser, argv)
    if args.T_model_path and not args.T_model:
        parser.error("argument --T_model_path: which network is that? Add --T_model")
    if args.aggregation == "others" and args.num_branches == 2 and not args.no_leader:
        parser.error("argument --aggregation: others needs two peers, and --num_branches 2 leaves one besides the "
                     "leader: take more, or --no_leader")
    return args


def method_name(args) -> str:
    """The folder of the method's runs: OKDDip, and what differs from it."""
    variants = {"-N": args.MulStu, f"-{args.aggregation}": args.aggregation != "attention",
                "-detach_targets": args.detach_targets, "-no_leader": args.no_leader, "+KD": args.T_model}
    return "OKDDip" + "".join(name for name, on in variants.items() if on)


def measured(peers, leader):  # [B, m-1, C], [B, C] -> [B, m+1, C]: the leader, each peer, the peers' ensemble
    return torch.cat([*([] if leader is None else [leader.unsqueeze(1)]), peers, peers.mean(1, keepdim=True)], 1)


def build(args, num_classes: int):
    """The group and what is measured of it: -> model, rows, predict (see engine.Method)."""
    model = models.OKDDip(args.model, num_classes, args.num_branches, args.MulStu, args.aggregation,
                          leader=not args.no_leader, **utils.network_options(args))
    if args.detach_targets:  # no gradient comes to W_L and W_E: no weight decay either, and no process waits for one
        model.aggregation.requires_grad_(False)
    peers = {f"stu{a}": f"peer {a}" for a in range(args.num_branches - (not args.no_leader))}
    rows = {**({} if args.no_leader else {"stu_": "leader"}), **peers, "": "ensemble"}

    def predict(model, images):
        peers, attention, leader = model.attend(images)
        return measured(peers, leader), {"attention": attention}

    return model, rows, predict


def main(argv: list[str] | None = None) -> None:
    """Train with the flags ``argv`` (default: the command line's); UserError where they, data or a file are wrong."""
    args = parse_args(argv)
    run = Run(args, method_name(args))
    model, rows, predict = build(args, run.num_classes)
    teacher = load_teacher(args, run) if args.T_model else None

    if args.num_branches == 2 and not args.no_leader:
        utils.warn("--num_branches 2 leaves one peer, which has nobody but itself to attend to")

    def objective(model, images, labels, weight):
        peers, targets, leader = model(images)
        terms = okddip_loss(peers, targets, leader, labels, weight, args.temperature, args.alpha, args.loss,
                            teacher=teacher and teacher(images), detach_targets=args.detach_targets)
        return terms, measured(peers, leader)

    engine.fit(run, model, engine.Method(
        rows, objective, predict, best="test_accTop1" if args.choose_E or args.no_leader else "stu_test_accTop1",
        weight=lambda epoch: ramp_up(epoch, run.num_epochs, args.start_consistency, args.length),
        curves={} if args.no_leader else {"stu_": "B"}))


if __name__ == "__main__":
    utils.command(main)
