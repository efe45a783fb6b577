"""How a group makes one target out of several students: attention (OKDDip), gate (ONE), mean of the others (CL)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """alpha_ab = softmax_b((W_L h_a) . (W_E h_b)), the weight of peer b in the target of peer a (paper, eq. 4-6).

    No bias and no 1/sqrt(d); b runs over all peers, a itself included. W_L and W_E are shared by the peers, which
    is what makes the attention asymmetric. They learn through the targets alone: detach those, and they stand still.
    """

    def __init__(self, width: int):
        super().__init__()
        self.W_L = nn.Linear(width, width // 8, bias=False)
        self.W_E = nn.Linear(width, width // 8, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """h [B, p, D], the peers' features -> alpha [B, p, p], rows (a) summing to 1."""
        L, E = self.W_L(h), self.W_E(h)  # [B, p, D/8]
        return torch.softmax(L @ E.mT, dim=-1)


class Gate(nn.Module):
    """g = softmax(ReLU(BatchNorm(Linear(avgpool(x))))), ONE's weight of each branch (Lan et al. 2018)."""

    def __init__(self, width: int, num_branches: int):
        super().__init__()
        self.linear = nn.Linear(width, num_branches)
        self.norm = nn.BatchNorm1d(num_branches)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, width, H, W], the trunk's output -> g [B, m], summing to 1."""
        return torch.softmax(F.relu(self.norm(self.linear(x.mean((2, 3))))), dim=-1)


def others_mean(logits: Tensor) -> Tensor:
    """t_i = mean of z_j over j != i. logits [B, m, C] -> targets [B, m, C]."""
    m = logits.shape[1]
    return (logits.sum(1, keepdim=True) - logits) / (m - 1)


class _DivideGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, divisor: int) -> Tensor:
        ctx.divisor = divisor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient / ctx.divisor, None


def divide_gradient(x: Tensor, divisor: int) -> Tensor:
    """x itself; the gradient that comes back through it is divided (CL-ILR's intermediate-level representation)."""
    return _DivideGradient.apply(x, divisor)
