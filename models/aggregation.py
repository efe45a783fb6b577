"""How a group makes a target from several students: attention (OKDDip), gate (ONE), mean of the others (CL-ILR)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def projected(width: int) -> int:
    """The rows of W_L and W_E: D/8, as in the authors' code, and one for fewer than 8 features."""
    return max(width // 8, 1)


class Attention(nn.Module):
    """alpha_ab = softmax_b((W_L h_a) . (W_E h_b)), the weight of peer b in the target of peer a (paper, section 3.2).

    No bias and no 1/sqrt(d). b runs over all peers, including a. The peers share W_L and W_E. The two differ, so
    the weights are asymmetric: alpha_ab is not alpha_ba.

    W_L and W_E receive gradients only through the targets. With detached targets they are not trained.
    """

    def __init__(self, width: int):
        super().__init__()
        self.W_L = nn.Linear(width, projected(width), bias=False)
        self.W_E = nn.Linear(width, projected(width), bias=False)

    def scores(self, h: Tensor) -> Tensor:
        """h [B, p, D] -> (W_L h_a) . (W_E h_b) [B, p, p]."""
        L, E = self.W_L(h), self.W_E(h)  # [B, p, D/8]
        return L @ E.mT  # [B, p, D/8] @ [B, D/8, p] -> [B, p, p]

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """h [B, p, D]: features of the p peers; z [B, p, C]: their logits, not used -> alpha [B, p, p].

        Each row alpha[:, a] sums to 1.
        """
        return torch.softmax(self.scores(h), dim=-1)


class OthersAttention(Attention):
    """Attention over b != a: alpha_aa = 0, so no peer is its own teacher.

    The paper's abstract speaks of "other" peers. Its equation and the authors' code include a itself, as Attention.

    Needs at least two peers. With exactly two, each attends to the other alone.
    """

    def scores(self, h: Tensor) -> Tensor:
        diagonal = torch.eye(h.shape[1], dtype=torch.bool, device=h.device)
        return super().scores(h).masked_fill(diagonal, float("-inf"))


# The paper's Table 5 replaces the attention by each of the next four. The paper only names them: the equations are this
# project's interpretation. Like Attention, each takes h and z and returns alpha.


class SymmetricAttention(nn.Module):
    """W_E = W_L: before the softmax, alpha_ab and alpha_ba are equal."""

    def __init__(self, width: int):
        super().__init__()
        self.W_L = nn.Linear(width, projected(width), bias=False)

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
    """Softmax of normal random numbers, new for every image and step. In evaluation their mean, 1/p.

    PyTorch's generator draws them; the run seeds it and saves it in checkpoints. Evaluation draws none, so it does not
    change the random numbers of the training.
    """

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        if not self.training:
            return super().forward(h, z)
        p = h.shape[1]
        return torch.softmax(torch.randn(h.shape[0], p, p, device=h.device, dtype=h.dtype), dim=-1)


class EntropyWeights(MeanWeights):
    """softmax_b(-H(softmax(z_b))), H the entropy: a more confident peer has a larger weight, the same for every a."""

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        log_p = F.log_softmax(z, dim=-1)
        negative_entropy = (log_p.exp() * log_p).sum(-1)  # [B, p]
        return torch.softmax(negative_entropy, dim=-1).unsqueeze(1).expand(-1, z.shape[1], -1)  # [B, p] -> [B, p, p]


AGGREGATIONS = {"attention": Attention, "mean": MeanWeights, "random": RandomWeights, "entropy": EntropyWeights,
                "symmetric": SymmetricAttention, "others": OthersAttention}


class Gate(nn.Module):
    """ONE's weight of each branch: g = softmax(ReLU(BatchNorm(Linear(avgpool(x))))) (Lan et al. 2018)."""

    def __init__(self, width: int, num_branches: int):
        super().__init__()
        self.linear = nn.Linear(width, num_branches)
        self.norm = nn.BatchNorm1d(num_branches)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, width, H, W], the trunk's output -> g [B, m]; each row sums to 1."""
        pooled = x.mean((2, 3))  # [B, width]
        return torch.softmax(F.relu(self.norm(self.linear(pooled))), dim=-1)


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
    """x unchanged. In backward its gradient is divided by ``divisor`` (CL-ILR, Song & Chai 2018)."""
    return _DivideGradient.apply(x, divisor)
