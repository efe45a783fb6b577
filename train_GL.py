"""OKDDip (Chen et al., AAAI 2020): auxiliary peers attend to each other and teach a group leader.

    python train_GL.py --model resnet32 --dataset CIFAR10
    python train_GL.py --model resnet32 --dataset CIFAR10 --MulStu       # whole networks instead of branches

    alpha_ab = softmax_b((W_L h_a) . (W_E h_b))          attention of peer a, over all m - 1 peers
    t_a      = sum_b alpha_ab z_b                        target of peer a

t_a teaches peer a, and the mean of the peers teaches the leader: ``losses.okddip_loss``. The model: ``models.OKDDip``.

Measured, test error of the last epoch, leader, resnet20 (results/). 10,000 images of CIFAR-100: OKDDip-B
51.22 ± 0.15 % (5 seeds), with --aggregation mean 51.43 ± 0.52 % (3 seeds), with others 51.63 ± 0.31 % (3 seeds).
5,000 images of CIFAR-10, the older study: OKDDip-N 30.92 ± 0.54 % (3 seeds).
"""

import utils


def parse_args(argv: list[str] | None):
    """The flags of this script."""
    parser = utils.Parser(__doc__)
    g = utils.distillation_flags(parser, "OKDDip")
    utils.ramp_up_flags(g)
    utils.group_flags(g, "students, the leader included")
    g.add_argument("--aggregation", default="attention",
                   choices=("attention", "mean", "random", "entropy", "symmetric", "others"),
                   help="weights of the peers in a target (Table 5; all but attention are this project's reading). "
                        "mean: 1/peers; random: softmax of normal random numbers; entropy: a confident peer weighs "
                        "more; symmetric: W_L = W_E; others: attention without the peer itself")
    g.add_argument("--detach_targets", action="store_true",
                   help="no gradient through the targets (not in the paper); W_L and W_E are not trained")
    g.add_argument("--no_leader", action="store_true",
                   help="all students are peers; measured are their ensemble and their mean (Tables 4 and 5)")
    utils.teacher_flags(g, None, "pre-trained teacher of every student (Table 6)")
    args = utils.parse(parser, argv)
    parser.refuse("T_model_path", args.T_model_path and not args.T_model, "needs the network's name. Add --T_model")
    parser.refuse("aggregation", args.aggregation == "others" and args.num_branches == 2 and not args.no_leader,
                  "others needs two peers, and --num_branches 2 leaves one besides the leader: use more branches, or "
                  "--no_leader")
    return args


if __name__ == "__main__":
    utils.before_pytorch(parse_args)  # --help, wrong flags and a finished run end here

import torch

import models
from deployment.reading import load_teacher
from losses import okddip_loss
from runtime.errors import warn
from training.loop import train_method
from training.method import Method
from training.outputs import LEADER, WHOLE, group_outputs, student, student_number


class OKDDip(Method):
    """m - 1 peers with targets of their own, and the group leader."""

    def __init__(self, args, num_classes: int):
        self.args = args
        self.model = models.OKDDip(args.model, num_classes, args.num_branches, args.MulStu, args.aggregation,
                                   leader=not args.no_leader, **utils.network_options(args))
        if args.detach_targets:  # W_L and W_E get no gradient. Frozen, they are not changed by weight decay either.
            self.model.aggregation.requires_grad_(False)
        leader = {} if args.no_leader else {LEADER: "leader"}
        peers = {student(a): f"peer {a}" for a in range(args.num_branches - len(leader))}
        self.outputs = leader | peers | {WHOLE: "ensemble"}
        self.best = WHOLE if args.choose_E or args.no_leader else LEADER

    def prepare(self, train_loader) -> None:
        args = self.args
        if args.T_model:
            self.teacher = load_teacher(args.T_model, utils.teacher_path(args), train_loader)
        if args.num_branches == 2 and not args.no_leader:
            warn("--num_branches 2 leaves one peer, which can attend only to itself")

    @classmethod
    def name(cls, args) -> str:
        variants = {"-N": args.MulStu, f"-{args.aggregation}": args.aggregation != "attention",
                    "-detach_targets": args.detach_targets, "-no_leader": args.no_leader, "+KD": args.T_model}
        return "OKDDip" + "".join(variant for variant, on in variants.items() if on)

    def loss(self, model, images, labels, weight):
        args = self.args
        peers, targets, leader = model(images)  # z_a and t_a [B, m-1, C], z_leader [B, C]
        terms = okddip_loss(peers, targets, leader, labels, weight, args.temperature, args.alpha, args.loss,
                            teacher=self.teacher and self.teacher(images), detach_targets=args.detach_targets)
        return terms, self.measured(peers, leader)

    def predict(self, images):
        peers, attention, leader = self.model.attend(images)  # attention: alpha [B, m-1, m-1]
        itself = attention.diagonal(dim1=1, dim2=2).mean(1, dtype=torch.float64)  # mean_a alpha_aa [B]
        return self.measured(peers, leader), {"attention": attention, "attention_self": itself}

    def measured(self, peers, leader):  # [B, m-1, C], [B, C]
        return ({} if leader is None else {LEADER: leader}) | group_outputs(peers)

    def network(self, output: str):
        return self.model.student(-1 if output == LEADER else student_number(output))

    def advice(self, last):
        itself = last.get("attention_self") or 0  # null if it was not finite; older runs did not measure it
        if itself <= 0.9 or len(last["attention"]) == 1:  # a lone peer has nobody else to attend to
            return None
        remedy = "--aggregation others" + ("" if self.args.detach_targets else " or --detach_targets")
        return (f"the peers attend to themselves: their mean weight for themselves (attention_self) is {itself:.2f}. "
                f"So a target is nearly the peer's own output, and the peers hardly teach each other. {remedy} "
                "changes this (docs/equations.md)")


def main(argv: list[str] | None = None) -> None:
    """Train with the flags ``argv`` (default: the command line). UserError if flags, data or a file are wrong."""
    train_method(OKDDip, parse_args(argv))


if __name__ == "__main__":
    utils.command(main)
