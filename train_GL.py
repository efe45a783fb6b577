"""OKDDip (Chen et al., AAAI 2020): auxiliary peers that attend to each other, and a group leader that they teach.

    python train_GL.py --model resnet32 --dataset CIFAR10
    python train_GL.py --model resnet32 --dataset CIFAR10 --MulStu       # whole networks instead of branches

    alpha_ab = softmax_b((W_L h_a) . (W_E h_b))          attention of peer a, over all m - 1 peers
    t_a      = sum_b alpha_ab z_b                        its own target
    L_true   = sum_a CE(z_a, y) + CE(z_leader, y)
    L_group  = sum_a T^2 KL(t_a || z_a) + T^2 KL(mean_a z_a || z_leader)
    L        = L_true + alpha w(e) L_group
"""

import torch

import engine
import models
import utils
from losses import okddip_loss, ramp_up
from run import Run


def parse_args(argv: list[str] | None):
    parser = utils.parser(__doc__)
    g = utils.distillation_flags(parser, "OKDDip")
    utils.ramp_up_flags(g)
    utils.group_flags(g, "students, the leader among them")
    return utils.parse(parser, argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.num_branches == 2:
        utils.warn("--num_branches 2 leaves one peer, which has nobody but itself to attend to")
    run = Run(args, "OKDDip-N" if args.MulStu else "OKDDip")
    model = models.OKDDip(args.model, run.num_classes, args.num_branches, args.MulStu, **utils.network_options(args))

    def measured(peers, leader):  # [B, m-1, C], [B, C] -> [B, m+1, C]: each peer, the leader, the peers' ensemble
        return torch.cat([peers, leader.unsqueeze(1), peers.mean(1, keepdim=True)], 1)

    def objective(model, images, labels, weight):
        peers, targets, leader = model(images)
        terms = okddip_loss(peers, targets, leader, labels, weight, args.temperature, args.alpha, args.loss)
        return terms, measured(peers, leader)

    def predict(model, images):
        peers, attention, leader = model.attend(images)
        return measured(peers, leader), {"attention": attention}

    rows = [f"stu{a}" for a in range(args.num_branches - 1)] + ["stu_", ""]
    engine.fit(run, model, engine.Method(
        rows, objective, predict, best="stu_test_accTop1",
        weight=lambda epoch: ramp_up(epoch, run.num_epochs, args.start_consistency, args.length)))


if __name__ == "__main__":
    utils.command(main)
