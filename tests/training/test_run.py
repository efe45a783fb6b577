"""A run without its training: device settings, seeds, folder and log."""

import random

import numpy as np
import pytest
import torch
from processes import be_one_of, group

from runtime import processes
from runtime.device import seed_everything
from runtime.errors import UserError
from training.folder import FILES
from training.records import log
from training.run import Run


def test_precision(arguments):
    for tf32 in (True, False):
        Run(arguments(*["--tf32"] * tf32), "baseline")
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32


def test_imagenet_keeps_its_size_for_networks_from_elsewhere(arguments):
    flags = arguments("--model", "torchvision:shufflenet_v2_x0_5", "--dataset", "imagenet")
    assert Run(flags, "baseline").args.image_size == 224


def test_the_seed_is_set_before_the_model_is_made(arguments):
    drawn = []
    for start in (lambda: seed_everything(7), lambda: Run(arguments("--seed", "7"), "baseline")):
        seed_everything(0)
        start()
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]
    run = Run(arguments("--seed", "7"), "baseline")
    torch.nn.Linear(2, 2)
    before = torch.get_rng_state()
    with run:
        assert torch.get_rng_state().equal(before), "seeded again after the model was made"


def test_each_process_draws_its_own_numbers(arguments, monkeypatch):
    drawn = []
    for rank in (0, 1, 2, 1):
        run = Run(arguments("--seed", "7", "--overwrite"), "baseline")
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        with run:
            drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
        monkeypatch.undo()
    assert drawn[3] == drawn[1] and all(len(set(numbers)) == 3 for numbers in zip(*drawn[:3], strict=True))


def test_overwrite_removes_the_old_run_at_its_start(arguments, tmp_path):
    """And no other file. A stop in the first epoch then leaves nothing that could be resumed or reported."""
    folder = tmp_path / "CIFAR10" / "resnet32"
    (folder / "B").mkdir(parents=True)
    for name in (*FILES, "last.tmp.pth", "events.out.tfevents.1", "B/events.out.tfevents.1", "notes.txt"):
        (folder / name).write_text("old")
    with Run(arguments("--overwrite"), "baseline"):
        assert {path.name for path in folder.iterdir()} == {"lock", "notes.txt", "train.log"}
    (folder / "B").mkdir()
    for name in ("train.log", "B/events.out.tfevents.1", "B/notes.txt"):
        (folder / name).write_text("old")
    with Run(arguments("--overwrite"), "baseline"):
        assert [path.name for path in (folder / "B").iterdir()] == ["notes.txt"]
        assert (folder / "train.log").read_text() == ""


def test_each_run_has_its_own_log_and_lets_go_of_its_folder(arguments):
    for version in ("A", "B"):
        run = Run(arguments("--version", version), "baseline")
        with run as entered:
            assert entered is run and not run.lock.file.closed
            log.info(f"a line of {version}")
        log.info("a line of nobody")
        assert run.lock.file.closed
        assert (run.folder / "train.log").read_text()[21:] == f"a line of {version}\n"


def test_what_has_changed_is_reported_by_the_first_process_alone(arguments, monkeypatch):
    run = Run(arguments(), "baseline")
    run.check_unchanged(classes=["a", "b"])
    for rank, environment in enumerate(group(2)):
        be_one_of(monkeypatch, environment)
        with pytest.raises(UserError) as error:
            run.check_unchanged(classes=["a", "c"])
        assert error.value.already_reported == (rank == 1)
