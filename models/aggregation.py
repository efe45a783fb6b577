"""How a group makes one target out of several students: attention (OKDDip), gate (ONE), mean of the others (CL)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .architecture import BatchNorm


class Attention(nn.Module):
    """alpha_ab = softmax_b((W_L h_a) . (W_E h_b)), the weight of peer b in the target of peer a (paper, section 3.2).

    No bias and no 1/sqrt(d); b runs over all peers, a itself included. W_L and W_E are shared by the peers, and that
    they differ makes the weights asymmetric. They learn through the targets alone: detach those, and they stand still.
    """

    def __init__(self, width: int):
        super().__init__()
        self.W_L = nn.Linear(width, width // 8, bias=False)
        self.W_E = nn.Linear(width, width // 8, bias=False)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """h [B, p, D], the peers' features (z, their logits [B, p, C], is not used) -> alpha [B, p, p], whose rows (a)
        sum to 1."""
        L, E = self.W_L(h), self.W_E(h)  # [B, p, D/8]
        return torch.softmax(L @ E.mT, dim=-1)


class OthersAttention(Attention):
    """Attention over b != a, not the paper's: alpha_aa = 0, so that no peer is its own teacher. Of two peers, each
    attends to the other alone; a single one has nobody."""

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        scores = self.W_L(h) @ self.W_E(h).mT
        itself = torch.eye(h.shape[1], dtype=torch.bool, device=h.device)
        return torch.softmax(scores.masked_fill(itself, float("-inf")), dim=-1)


# The next four are what the paper's Table 5 puts in the attention's place. The paper names them and does not spell
# them out: these are this project's readings. Each takes h and z and gives alpha, as Attention does.


class SymmetricAttention(nn.Module):
    """W_E = W_L: what a sees in b, b sees in a (before the softmax)."""

    def __init__(self, width: int):
        super().__init__()
        self.W_L = nn.Linear(width, width // 8, bias=False)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        L = self.W_L(h)
        return torch.softmax(L @ L.mT, dim=-1)


class MeanWeights(nn.Module):
    """1/p for each of p peers."""

    def __init__(self, width: int):
        super().__init__()

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        p = h.shape[1]
        return h.new_full((h.shape[0], p, p), 1 / p)


class RandomWeights(MeanWeights):
    """Softmax of normal draws, fresh for every image and step, from PyTorch's generator, which the run seeds and its
    checkpoints keep. In evaluation their mean, 1/p, so that measuring a network does not move the draws of training."""

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        if not self.training:
            return super().forward(h, z)
        p = h.shape[1]
        return torch.softmax(torch.randn(h.shape[0], p, p, device=h.device, dtype=h.dtype), dim=-1)


class EntropyWeights(MeanWeights):
    """softmax_b(-H(softmax(z_b))): a surer peer weighs more, for every a alike."""

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        log_p = F.log_softmax(z, dim=-1)
        negative_entropy = (log_p.exp() * log_p).sum(-1)  # [B, p]
        return torch.softmax(negative_entropy, dim=-1).unsqueeze(1).expand(-1, z.shape[1], -1)


AGGREGATIONS = {"attention": Attention, "mean": MeanWeights, "random": RandomWeights, "entropy": EntropyWeights,
                "symmetric": SymmetricAttention, "others": OthersAttention}


class Gate(nn.Module):
    """g = softmax(ReLU(BatchNorm(Linear(avgpool(x))))), ONE's weight of each branch (Lan et al. 2018)."""

    def __init__(self, width: int, num_branches: int):
        super().__init__()
        self.linear = nn.Linear(width, num_branches)
        self.norm = BatchNorm(num_branches)

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
