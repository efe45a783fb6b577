"""What only train_GL.py has: a lone peer, advice about the attention, and outputs that are not finite."""

import json
import re

import pytest
import torch
from conftest import few_digits

import evaluate
import models
import train_GL
from analysis.records import find_runs
from runtime.errors import Complete

TINY = ["--model", "resnet8", "--dataset", "DIGITS", "--batch_size", "64", "--num_epochs", "1", "--device", "cpu"]


@pytest.mark.parametrize(("itself", "flags", "said"), [
    (0.91, [], "--aggregation others or --detach_targets changes this"),
    (0.91, ["--detach_targets"], "--aggregation others changes this"),
    (0.9, [], None),
    (None, [], None),  # not a finite number
    (1.0, ["--num_branches", "2"], None)])  # a lone peer
def test_peers_that_attend_to_themselves(itself, flags, said, capsys):
    """A warning that gives alpha_aa and the flags which change it."""
    method = train_GL.OKDDip(train_GL.parse_args([*TINY, *flags]), 10)
    assert capsys.readouterr().err == ""  # a lone peer may be made to be evaluated
    p = method.args.num_branches - 1
    advice = method.advice({"attention_self": itself, "attention": [[itself and 1 / p] * p] * p})
    assert (advice is None) == (said is None)
    assert advice is None or said in advice and "is 0.91" in advice


def test_a_lone_peer_is_trained_with_a_warning(tmp_path, capsys):
    with few_digits():
        train_GL.main([*TINY, "--num_branches", "2", "--save_dir", str(tmp_path)])
    captured = capsys.readouterr()
    assert "leaves one peer, which can attend only to itself" in captured.err and "attention_self" not in captured.out
    assert (tmp_path / "DIGITS" / "OKDDip" / "resnet8" / "summary.json").exists()


def test_a_run_whose_outputs_are_not_finite_in_the_end(tmp_path, monkeypatch, capsys):
    """All steps were fine, the test is not. The run ends and can be evaluated; a report leaves it out."""
    attend = models.OKDDip.attend

    def not_finite(self, images):
        return [part if self.training else part * torch.nan for part in attend(self, images)]

    monkeypatch.setattr(models.OKDDip, "attend", not_finite)
    folder = tmp_path / "DIGITS" / "OKDDip" / "resnet8"
    with few_digits():
        train_GL.main([*TINY, "--save_dir", str(tmp_path)])
        record = json.loads((folder / "metrics.jsonl").read_text())
        assert record["attention_self"] is record["dist"] is record["test_loss"] is None
        assert record["attention"] == [[None] * 3] * 3
        assert "not a finite number, recorded as null: " in (folder / "train.log").read_text()
        assert json.loads((folder / "summary.json").read_text())["last"] == record
        for more in ([], ["--json"]):
            capsys.readouterr()
            evaluate.main([str(folder), "--device", "cpu", *more])
        assert '"attention_self": null' in capsys.readouterr().out
        with pytest.raises(Complete):
            train_GL.main([*TINY, "--resume", str(folder)])
    (left_out,) = find_runs([tmp_path])[1]
    assert re.search("is left out: the training diverged", left_out)
