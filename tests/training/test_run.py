"""A run without its training: device settings, seeds, folder and log."""

import random

import numpy as np
import pytest
import torch
from processes import group

import utils
from runtime.device import seed_everything
from runtime.errors import UserError
from training.log import log
from training.run import Run


def arguments(tmp_path, *flags):
    return utils.parse(utils.Parser("a description"), ["--save_dir", str(tmp_path), "--device", "cpu", *flags])


def test_precision(tmp_path):
    for tf32 in (True, False):
        Run(arguments(tmp_path, *["--tf32"] * tf32))
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32


def test_the_seed_is_set_before_the_model_is_made(tmp_path):
    drawn = []
    for start in (lambda: seed_everything(7), lambda: Run(arguments(tmp_path, "--seed", "7"))):
        seed_everything(0)
        start()
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


def test_each_run_has_its_own_log_and_lets_go_of_its_folder(tmp_path):
    for version in ("A", "B"):
        run = Run(arguments(tmp_path, "--version", version))
        with run as entered:
            assert entered is run and not run.lock.file.closed
            log.info(f"a line of {version}")
        log.info("a line of nobody")
        assert run.lock.file.closed
        assert (run.folder / "train.log").read_text()[21:] == f"a line of {version}\n"


def test_what_has_changed_is_reported_by_the_first_process_alone(tmp_path, monkeypatch):
    run = Run(arguments(tmp_path))
    run.check_unchanged(classes=["a", "b"])
    run.check_unchanged(classes=["a", "b"])
    for environment in group(2):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match="was started with other classes .* resume it with the same") as error:
            run.check_unchanged(classes=["a", "c"])
        assert error.value.already_reported == (environment["RANK"] == "1")
