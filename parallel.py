"""Several processes, one to a GPU, that torchrun has started: what they tell each other, and which part each one does.

    torchrun --standalone --nproc_per_node=4 train_GL.py --model resnet32 --dataset CIFAR10

On GPUs they talk through NCCL, on CPUs through Gloo; what is not a gradient always goes through the CPU. Without
torchrun there is one process, and every function here gives what it was given.
"""

import inspect
import os
import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from errors import Complete, UserError

CPU = torch.device("cpu")
Result = TypeVar("Result")


def launched() -> bool:
    """Whether torchrun has started this process: some of these variables alone mean nothing."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def world_size() -> int:
    """The number of processes, 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def is_main() -> bool:
    """Whether this is the process that writes: the first, or the only one."""
    return rank() == 0


def start(device: torch.device) -> None:
    """Meet the others, if there are any."""
    if world_size() > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def leave() -> None:
    """End this process, if it is one of several, with the exit code of the exception under way.

    At once: what the interpreter would clean up of Gloo's threads has aborted (torch 2.15) or waited for ever (2.4).
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
    """This process's share of the images first <= i < end: consecutive ones, as many as the others', or one more."""
    n, r, w = end - first, rank(), world_size()
    return first + n * r // w, first + n * (r + 1) // w


def total(numbers: Tensor) -> Tensor:
    """Sum over the processes of a tensor on the CPU."""
    if world_size() > 1:
        dist.all_reduce(numbers)
    return numbers


def greatest(number: int) -> Callable[[], int]:
    """The greatest of the processes' numbers; it is waited for when the result is called, so ask early."""
    if world_size() == 1:
        return lambda: number
    tensor = torch.tensor(number)
    work = dist.all_reduce(tensor, dist.ReduceOp.MAX, async_op=True)

    def wait() -> int:
        work.wait()
        return int(tensor)

    return wait


def gather(value: object) -> list:
    """The value of each process, in every one of them."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def on_main(function: Callable[[], Result]) -> Result:
    """What ``function`` gives, or raises for the user, in the first process: the same in every one, called once."""
    if world_size() == 1:
        return function()
    outcome = [None, None]
    if is_main():
        try:
            outcome[0] = function()
        except (UserError, Complete) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, device=CPU)
    if outcome[1] is not None:
        outcome[1].told = not is_main()
        raise outcome[1]
    return outcome[0]


def main_first(function: Callable[[], Result]) -> Result:
    """Call it in the first process, then in the others: what the first one downloads, they find."""
    results = []
    on_main(lambda: results.append(function()))
    return results[0] if results else function()


def replicated(model: nn.Module, device: torch.device, sync_bn: bool = False) -> nn.Module:
    """The model as a training step calls it: DistributedDataParallel over the processes, or itself.

    Buffers are not sent before each step: in training BatchNorm does not use its statistics. Before an evaluation,
    ``share_buffers`` makes them those of the first process, which is also the one that saves. Each parameter
    that requires a gradient gets one in each step.
    """
    if world_size() == 1:
        return model
    if sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    ddp = nn.parallel.DistributedDataParallel
    known = inspect.signature(ddp).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.14
    return ddp(model, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True,
               **{buffers: False})


def share_buffers(model: nn.Module) -> None:
    """Give every process the first one's BatchNorm statistics."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def lost_another(error: RuntimeError) -> bool:
    """Whether an error of a collective operation means that another process has gone."""
    signs = ("gloo/transport", "connection closed by peer", "connection reset by peer", "broken pipe")
    return world_size() > 1 and (isinstance(error, dist.DistError) or any(s in str(error).lower() for s in signs))
