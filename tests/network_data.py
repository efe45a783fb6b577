"""Images for tests of networks."""

import torch
from torch import Tensor


def random_images(batch: int, size: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))
