"""train_OKDPH.py: a stop during an evaluation, and different networks in a run from the start to the export."""

import json

import pytest
from conftest import few_digits
from processes import TINY, assert_same_run, load

import evaluate
import train_DML
import train_OKDPH
from deployment.reading import read
from training import loop
from training.signals import Interrupted

FEW = [*TINY, "--train_size", "0", "--batch_size", "32"]


def test_stopped_in_an_evaluation_it_shares_once(monkeypatch, tmp_path):
    """The networks have moved towards the hybrid when the evaluation begins. The resumed run does not move them again.
    """
    flags = [*FEW, "--num_epochs", "2", "--lr", "0.05", "--hybrid", "dirichlet"]
    with few_digits():
        train_OKDPH.main([*flags, "--save_dir", str(tmp_path / "whole")])

        def stop(*_):
            raise Interrupted(15)

        for _ in range(2):
            with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
                patch.setattr(loop, "evaluate", stop)
                train_OKDPH.main([*flags, "--save_dir", str(tmp_path / "stopped"), "--resume", "auto"])
            assert stopped.value.code == 128 + 15
        train_OKDPH.main([*flags, "--save_dir", str(tmp_path / "stopped"), "--resume", "auto"])
    folders = [tmp_path / name / "DIGITS" / "OKDPH-dirichlet" / "resnet8" for name in ("stopped", "whole")]
    assert_same_run(*folders)


def test_a_checkpoint_from_within_an_epoch_is_used_with_equal_weights(monkeypatch, tmp_path):
    """Not with the hybrid of the last step, whose weights were drawn. A training that goes on keeps that one."""
    def stop(*_):
        raise Interrupted(15)

    with few_digits():
        monkeypatch.setattr(train_OKDPH.OKDPH, "after_epoch", stop)
        with pytest.raises(SystemExit):
            train_OKDPH.main([*FEW, "--num_epochs", "1", "--hybrid", "dirichlet", "--save_dir", str(tmp_path)])
    path = tmp_path / "DIGITS" / "OKDPH-dirichlet" / "resnet8" / "last.pth"
    kept = load(path.parent)["state_dict"]
    assert kept["r"].sum() == pytest.approx(1) and kept["r"].std() > 0.01
    model = read(path).method.model
    for part, layer in (("head", "fc"), ("trunk", "conv1")):
        mean = sum(kept[f"{part}s.{i}.{layer}.weight"] for i in range(4)) / 4
        used = model.hybrid.state_dict()[f"{part}.{layer}.weight"]
        assert used.allclose(mean, atol=1e-6) and not used.equal(kept[f"hybrid.{part}.{layer}.weight"])


def test_different_networks_from_the_command_to_the_export(tmp_path, capsys):
    """Their names are in the log, in the metrics of evaluate.py and in the exported file."""
    with few_digits():
        train_DML.main(["--models", "resnet8", "resnet14", "--dataset", "DIGITS", "--device", "cpu", "--batch_size",
                        "32", "--num_epochs", "1", "--save_dir", str(tmp_path)])
        folder = tmp_path / "DIGITS" / "DML" / "resnet8+resnet14"
        assert "student 1, resnet14 " in (folder / "train.log").read_text()
        capsys.readouterr()
        evaluate.main([str(folder), "--device", "cpu", "--json"])
        result = json.loads(capsys.readouterr().out)
        assert result["rows"]["stu1"] == "student 1, resnet14" and result["model"] == "resnet8+resnet14"
        evaluate.main([str(folder), "--export", str(tmp_path / "one.pth"), "--branch", "1"])
    assert read(tmp_path / "one.pth").flags.model == "resnet14"
    assert "resnet14" in capsys.readouterr().out
