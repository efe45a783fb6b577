import random
import subprocess

import numpy as np
import pytest
import torch

from runtime import device
from runtime.errors import UserError


def test_revision_is_unknown_outside_a_clone(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "ROOT", tmp_path)
    assert device.git_revision() == "unknown"
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(device, "ROOT", tmp_path / "copy")  # a copy inside another repository
    assert device.git_revision() == "unknown"


def test_revision_says_whether_files_were_changed(tmp_path, monkeypatch):
    def git(*words):
        return subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True,
                              capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "models").mkdir()
    code, record = tmp_path / "models" / "a.py", tmp_path / "metrics.jsonl"
    code.write_text("a")
    git("add", ".")
    git("commit", "-qm", "a")
    monkeypatch.setattr(device, "ROOT", tmp_path)
    record.write_text("a record of a run is not code")
    assert device.git_revision() == git("rev-parse", "HEAD")
    code.write_text("b")
    assert device.git_revision() == git("rev-parse", "HEAD") + "+changes"


def test_pick_device():
    assert device.pick_device("cpu") == torch.device("cpu")
    expected = "cuda:0" if torch.cuda.is_available() else "cpu"
    assert device.pick_device() == torch.device(expected)


@pytest.mark.parametrize("name", ["tpu9", "meta"])
def test_an_unusable_device_is_named(name):
    with pytest.raises(UserError, match=f"{name}.*--device cpu"):
        device.pick_device(name)


def test_sync_bn_needs_gpus():
    with pytest.raises(UserError, match="--sync_bn needs GPUs"):
        device.pick_device("cpu", sync_bn=True)


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 7, 2**63 - 1])
def test_every_generator_is_seeded(seed):
    def drawn(seed):
        device.seed_everything(seed)
        return [random.random(), np.random.rand(), torch.rand(1).item()]

    first = drawn(seed)
    assert drawn(seed) == first
    assert all(a != b for a, b in zip(first, drawn(seed + 1 if seed < 9 else seed - 1), strict=True))


def test_a_record_names_the_instruction_set_of_a_cpu():
    recorded = device.environment(torch.device("cpu"))["device"]
    assert f" {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} CPU threads)" in recorded
