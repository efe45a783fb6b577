import subprocess

import pytest
import torch

from runtime import device
from runtime.errors import UserError


def test_the_revision_says_whether_files_were_changed(tmp_path, monkeypatch):
    """It is unknown outside a clone, and of a copy inside another repository."""
    def git(*words):
        return subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True,
                              capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(device, "ROOT", tmp_path)
    assert device.git_revision() == "unknown"
    git("init", "-q")
    (tmp_path / "models").mkdir()
    code, record = tmp_path / "models" / "a.py", tmp_path / "metrics.jsonl"
    code.write_text("a")
    git("add", ".")
    git("commit", "-qm", "a")
    record.write_text("a record of a run is not code")
    assert device.git_revision() == git("rev-parse", "HEAD")
    code.write_text("b")
    assert device.git_revision() == git("rev-parse", "HEAD") + "+changes"
    monkeypatch.setattr(device, "ROOT", tmp_path / "models")
    assert device.git_revision() == "unknown"


def test_pick_device():
    assert device.pick_device("cpu") == torch.device("cpu")
    expected = "cuda:0" if torch.cuda.is_available() else "cpu"
    assert device.pick_device() == torch.device(expected)


def test_sync_bn_needs_gpus():
    with pytest.raises(UserError, match="--sync_bn needs GPUs"):
        device.pick_device("cpu", sync_bn=True)


def test_a_record_names_the_instruction_set_of_a_cpu():
    recorded = device.environment(torch.device("cpu"))["device"]
    assert f" {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} CPU threads)" in recorded
