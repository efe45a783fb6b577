"""How fast the deployed network is, compared with its group."""

import statistics
import time
from functools import partial

import torch
from torch import Tensor, nn

import models
from deployment.saved_model import SavedModel
from training.outputs import WHOLE, student


@torch.inference_mode()
def measure_speed(saved: SavedModel, output: str | None, batch_size: int, device: torch.device) -> dict:
    """Images per second and parameters of the deployed network alone, and of its group.

    Medians of forward passes of one batch. The two take turns, so that other work on the machine slows both.
    output: what is deployed; None (a group without a leader): the first student is measured.
    """
    images = torch.randn(batch_size, 3, saved.size, saved.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    networks = {"deployed": saved.method.network(student(0) if output is None else output)}
    if output != WHOLE:
        networks["group"] = saved.method.model
    autocast = saved.autocast(device)
    seconds = {name: [] for name in networks}
    start = time.perf_counter()
    while len(seconds["deployed"]) < 4 or len(seconds["deployed"]) < 8 and time.perf_counter() - start < 10:
        for name, network in networks.items():
            seconds[name].append(timed(network, images, autocast))
    return {"batch_size": batch_size} | {
        name: {"images_per_second": batch_size / statistics.median(seconds[name][1:]),  # the first one warms up
               "parameters": count_parameters(saved, network)} for name, network in networks.items()}


def timed(network: nn.Module, images: Tensor, autocast: torch.autocast) -> float:
    """Seconds of one forward pass."""
    wait = partial(torch.cuda.synchronize, images.device) if images.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    with autocast:
        network(images)
    wait()
    return time.perf_counter() - start


def count_parameters(saved: SavedModel, network: nn.Module) -> int:
    """The number of weights of a network."""
    if saved.external:  # its weights cannot be seen
        network = models.create_model(network.name, len(saved.classes))
    return sum(p.numel() for p in network.parameters())
