from types import SimpleNamespace

import torch

from training import progress
from training.metrics import RunningSums


def test_progress_in_lines(caplog, monkeypatch):
    """If standard error is not a terminal: a line every log_every steps, with loss, accuracy, speed and time left."""
    monkeypatch.setattr(progress.sys, "stderr", SimpleNamespace(isatty=lambda: False))
    trainer = SimpleNamespace(sums=RunningSums(torch.device("cpu")))
    trainer.means = lambda: {"terms": {"total": 2.0}, "hits": trainer.sums.means()["hits"]}
    method = SimpleNamespace(outputs={"": "network"}, best="")
    caplog.set_level("INFO")
    with progress.Progress("epoch 1/2", trainer, steps=5, log_every=2, method=method) as shown:
        for _ in range(5):
            trainer.sums.add(8, hits=torch.tensor([[4, 8]]))
            shown.update()
    assert len(caplog.messages) == 2
    for word in ("step 2/5", "loss 2.0000", "top-1 50.00 %", "images/s", "s left"):
        assert word in caplog.messages[0]
