"""docs/own_loop.py trains a group of somebody's networks, with nothing of this project but models/ and losses.py."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import torch
from sklearn.datasets import load_digits
from torch import nn
from own_loop import train

def student(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, num_classes))

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) - 0.3
labels = torch.tensor(digits.target)
group = train(student, images[:1400], labels[:1400], 10, branch_at="2", epochs=15)
group.eval()
leader = group.student(-1)
print(leader(images[1400:]).argmax(1).eq(labels[1400:]).float().mean().item())
"""


def test_the_loop_of_the_docs_teaches_somebodys_network(tmp_path):
    shutil.copytree(ROOT / "models", tmp_path / "models")
    for file in ("losses.py", "docs/own_loop.py"):
        shutil.copy(ROOT / file, tmp_path)
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.8  # chance: 0.1
