"""Damage saved files at random, and read them: never other numbers, never a hang, never the end of the process.

last.pth and best.pth of a run, and its leader exported as .pth, .safetensors and .onnx. A damage flips one bit, or cuts
the file. Each must be refused with one sentence, or load with exactly the right content (a bit that means nothing).
"""

import os
import random
import signal
from collections import Counter

import torch
from conftest import few_digits

import evaluate
import train_GL
from deployment import formats
from runtime.checkpoints import digest, load_checkpoint
from runtime.errors import UserError

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
EXPORTED = [f"leader{ending}" for ending in (".pth", ".safetensors", ".onnx")]


def make_files(root):
    """-> the five files."""
    flags = ["--dataset", "DIGITS", "--model", "resnet8", "--batch_size", "64", "--num_epochs", "1", "--device", "cpu"]
    with few_digits():
        train_GL.main([*flags, "--save_dir", str(root)])
    run = root / "DIGITS" / "OKDDip" / "resnet8"
    for name in EXPORTED:
        evaluate.main([str(run), "--export", str(root / name)])
    return [run / "last.pth", run / "best.pth", *(root / name for name in EXPORTED)]


def content_of(path, exported):
    """What the project reads from a file, as a digest: a whole checkpoint; of a network metadata and logits."""
    if not exported:
        return digest(load_checkpoint(path))
    network = formats.load(path)
    with torch.no_grad():
        return digest([network.name, network.classes, network.mean, network.std, network.size, network(IMAGES)])


def damaged(content, rng):
    """-> what was done, and the bytes."""
    if rng.random() < 0.3:
        length = rng.randrange(len(content))
        return f"cut to {length} bytes", content[:length]
    # Weights are most of a file. So half of the flips are near its ends, where its structure is.
    place = rng.randrange(len(content)) if rng.random() < 0.5 else rng.choice([1, -1]) * rng.randrange(1, 3000)
    changed = bytearray(content)
    changed[place] ^= 1 << rng.randrange(8)
    return f"bit of byte {place}", bytes(changed)


def read_in_a_process(path, exported, right, limit=60):
    """-> "refused", "right", or what went wrong. A process of its own, because a library may crash."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            signal.alarm(limit)
            torch.set_num_threads(1)
            code = 0 if content_of(path, exported) == right else 2
        except UserError as error:
            code = 1 if "\n" not in str(error) else 4
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {0: "right", 1: "refused", 2: "WRONG CONTENT", 3: "ANOTHER ERROR", 4: "MORE THAN ONE LINE",
            -signal.SIGALRM: "HANG"}.get(code, f"ENDED BY SIGNAL {-code}")


def damage(root, damages, seed=0):
    """-> for each file and result, how often it came."""
    counts = Counter()
    files = make_files(root)
    for path in files:
        exported = path.name in EXPORTED
        content, right = path.read_bytes(), content_of(path, exported)
        place = path.with_name(f"damaged{path.suffix}")
        for i in range(damages):
            what, changed = damaged(content, random.Random(f"{seed} {path.name} {i}"))
            place.write_bytes(changed)
            result = read_in_a_process(place, exported, right)
            assert result in ("right", "refused"), f"{path.name}, {what}: {result}"
            counts[path.name, result] += 1
    return counts
