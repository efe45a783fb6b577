"""Device, precision, seed, and the environment of a run."""

import os
import platform
import random
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

from runtime.errors import UserError
from runtime.rank import world_size

ROOT = Path(__file__).resolve().parent.parent
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}  # --amp; every other value is full precision


def pick_device(name: str | None = None, gpu_id: int = 0, sync_bn: bool = False) -> torch.device:
    """Device ``name``; "cuda": GPU ``gpu_id``; None: that GPU, or the CPU if there is none. UserError if unusable.

    Under torchrun each process has its own GPU. A GPU becomes the current one, so that nothing is allocated on another,
    pinned memory and NCCL included. sync_bn: synchronised BatchNorm is wanted, which needs a GPU.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    name = f"cuda:{gpu_id}" if name == "cuda" else name
    if world_size() > 1 and name.startswith("cuda"):
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise ValueError("this code runs on cpu and cuda")
        device = torch.empty(1, device=device).device  # "cuda" -> "cuda:0"
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"device {name!r} cannot be used ({reason}); --device cpu always works") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if sync_bn and device.type == "cpu":
        raise UserError("--sync_bn needs GPUs: PyTorch has no synchronised BatchNorm for CPUs, leave it out")
    return device


def set_precision(tf32: bool) -> None:
    """Keep float32 exact unless TF32 is asked for. Let cuDNN choose its fastest algorithm."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True


def place(module: nn.Module, device: torch.device) -> None:
    """Move a module to ``device``, its 2-dimensional convolutions in channels_last. ``.to`` refuses those of Conv3d."""
    module.to(device)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The context in which networks compute: half precision with --amp."""
    return torch.autocast(device.type, dtype=AMP.get(amp), enabled=amp in AMP)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """The seconds that ``work`` takes, a GPU's work included."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def git_revision() -> str:
    """The commit of this code, with "+changes" if Python files differ from it. "unknown" outside its git clone."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", ROOT, *words], check=True, capture_output=True, text=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return "unknown"
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", "*.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment(device: torch.device) -> dict[str, str | int]:
    """Versions, device and number of processes, as recorded with a run."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:  # the instruction set decides how a CPU rounds
        name = f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "revision": git_revision(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
        "device": f"{device} ({name}, {torch.get_num_threads()} CPU threads)",
        "processes": world_size(),
    }
