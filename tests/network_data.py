"""Images and weights for tests of networks."""

import math
import zlib

import torch
from torch import Tensor, nn

import models


def random_images(batch: int, size: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def weights_by_name(shapes: dict[str, tuple]) -> dict[str, Tensor]:
    """Float64 weights that depend on their names alone. Their size keeps activations from vanishing or exploding."""
    weights = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())),
                             dtype=torch.float64)
        if name.endswith("num_batches_tracked"):
            values = torch.tensor(0)
        elif name.endswith("running_var"):
            values = 1 + 0.1 * values.abs()
        elif len(shape) > 1:
            values *= math.sqrt(2 / (values.numel() / shape[0]))
        elif name.endswith("weight"):
            values = 1 + 0.1 * values
        else:
            values *= 0.1
        weights[name] = values
    return weights


def load_official(model: nn.Module, checkpoint: dict[str, Tensor]) -> nn.Module:
    """The model in float64 with these weights of the authors, in evaluation mode."""
    model.double()
    models.load_official_state_dict(model, checkpoint)
    return model.eval()
