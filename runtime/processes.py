"""Several processes, one per GPU, started by torchrun: they connect, split batches, and exchange results.

    torchrun --standalone --nproc_per_node=4 train_GL.py --model resnet32 --dataset CIFAR10

GPUs communicate through NCCL, CPUs through Gloo. Everything except gradients is exchanged between CPUs. Without
torchrun there is one process, and every function here returns what it was given.
"""

import inspect
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from runtime.errors import Complete, UserError, first_words
from runtime.rank import is_main, rank, world_size

CPU = torch.device("cpu")
TIMEOUT = timedelta(minutes=5)  # for connecting; PyTorch's default is half an hour
PATIENCE = timedelta(days=2)  # for the first process, which may decode or download a data set
Result = TypeVar("Result")
waiting: dict[str, dist.ProcessGroup] = {}  # "group": the process group of ``on_main``


def start(device: torch.device) -> None:
    """Join the process group, if there are several processes. device: from ``pick_device``.

    UserError if this process fails to connect to the others.
    """
    if world_size() > 1 and not dist.is_initialized():
        try:
            store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
            store.set_timeout(dist.constants.default_pg_timeout)
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=store,
                                    rank=rank(), world_size=world_size())
            waiting["group"] = dist.new_group(backend="gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:  # DistError is a RuntimeError
            address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise UserError(f"process {rank()} of {world_size()} failed to connect to the others at {address} "
                            f"({first_words(error)}): start all of them at the same time, with torchrun") from error


def leave() -> None:
    """End this process, if it is one of several, with the exit code of the current exception.

    The interpreter's own cleanup is skipped: with Gloo's threads it aborted (torch 2.15) or never ended (torch 2.4).
    """
    if world_size() == 1:
        return
    error = sys.exc_info()[1]
    code = error.code if isinstance(error, SystemExit) else error is not None
    if code is True:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0))


def part(first: int, end: int) -> tuple[int, int]:
    """This process's part of the images first <= i < end. Parts are consecutive; their sizes differ by at most one."""
    n, r, w = end - first, rank(), world_size()
    return first + n * r // w, first + n * (r + 1) // w


def total(numbers: Tensor) -> Tensor:
    """The sum of a CPU tensor over all processes."""
    if world_size() > 1:
        dist.all_reduce(numbers)
    return numbers


def greatest(number: int) -> Callable[[], int]:
    """The maximum over the processes. The exchange starts now; calling the result waits for it."""
    if world_size() == 1:
        return lambda: number
    tensor = torch.tensor(number)
    work = dist.all_reduce(tensor, dist.ReduceOp.MAX, async_op=True)

    def wait() -> int:
        work.wait()
        return int(tensor)

    return wait


def gather(value: object) -> list:
    """The values of all processes, in every process."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def on_main(function: Callable[[], Result]) -> Result:
    """Call ``function`` in the first process only. Every process gets its result, or its UserError or Complete.

    Before ``start`` every process calls it.
    """
    if not dist.is_initialized():
        return function()
    outcome = [None, None]
    if is_main():
        try:
            outcome[0] = function()
        except (UserError, Complete) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, group=waiting.get("group"), device=CPU)
    if outcome[1] is not None:
        outcome[1].already_reported = not is_main()
        raise outcome[1]
    return outcome[0]


def main_first(function: Callable[[], Result]) -> Result:
    """Call it in the first process, then in the others, which find what the first one downloaded."""
    results = []
    on_main(lambda: results.append(function()))
    return results[0] if results else function()


def replicated(model: nn.Module, device: torch.device, all_used: bool = True) -> nn.Module:
    """The model for a training step: DistributedDataParallel if there are several processes, else the model itself.

    Buffers are not sent before each step, because BatchNorm does not use its statistics in training. ``share_buffers``
    copies those of the first process, which also saves them, before each evaluation. all_used: every parameter that
    requires a gradient gets one in each step.
    """
    if world_size() == 1:
        return model
    ddp = nn.parallel.DistributedDataParallel
    known = inspect.signature(ddp).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.14
    return ddp(model, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True,
               find_unused_parameters=not all_used, **{buffers: False})


def share_buffers(model: nn.Module) -> None:
    """Give every process the BatchNorm statistics of the first one."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def another_process_ended(error: RuntimeError) -> bool:
    """Whether an error of a collective operation means that another process has ended."""
    signs = ("gloo/transport", "connection closed by peer", "connection reset by peer", "broken pipe")
    return isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in signs)
