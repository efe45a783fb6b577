import importlib
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

# Before PyTorch is imported: small networks need no more, and runs agree to the bit only with equal numbers of threads.
os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parent.parent
METHODS = {  # a run's folder -> script and flags
    "": ["train"],
    "KD": ["train_kd", "--T_model", "resnet8"],
    "OKDDip": ["train_GL", "--num_epochs", "2"],
    "OKDDip-N": ["train_GL", "--MulStu", "--num_branches", "3"],
    "OKDDip-entropy-no_leader+KD": ["train_GL", "--aggregation", "entropy", "--no_leader", "--T_model", "resnet8"],
    "ONE": ["train_one"],
    "CL-N": ["train_one", "--avg", "--MulStu", "--num_branches", "2"],
    "CL-ILR": ["train_one", "--avg", "--bpscale"],
    "Ind": ["train_one", "--ind"],
    "DML-pairwise": ["train_DML", "--type", "pairwise", "--num_branches", "2"],
    "FFL": ["train_FFL", "--num_branches", "2"],
    "PCL": ["train_PCL", "--num_branches", "2"],
    "KDCL-minlogit": ["train_KDCL", "--target", "minlogit", "--num_branches", "2"],
    "OKDPH": ["train_OKDPH", "--num_branches", "2"],
}


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", help="also run the tests that are marked slow")


def pytest_collection_modifyitems(config, items):
    """Slow tests only with --runslow. The longest files first, so that at the end no core waits for one of them."""
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--runslow"):
            item.add_marker(pytest.mark.skip(reason="slow: needs --runslow"))
    items.sort(key=lambda item: item.path.name not in ("test_docs.py", "test_execute.py"))


@pytest.fixture
def script(tmp_path):
    """script("train.py", "--model", ...) runs it like a user, in an empty folder; -> the finished process."""

    def start(name, *flags, cwd=tmp_path, **environment):
        command = [sys.executable, ROOT / name, *map(str, flags)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | environment)

    return start


@pytest.fixture
def image_folder(tmp_path):
    """image_folder(train=4, ...) -> class folders with ``make_images``."""
    from image_data import make_images

    return lambda root=tmp_path / "images", train=20, test=7, size=(40, 36): make_images(root, train, test, size)


@contextmanager
def few_digits():
    """While entered, --dataset DIGITS has 128 training and 60 test images."""
    import data_loader

    def few(root, test_only):
        data = data_loader.digits(root)
        return data._replace(train=data.train.take(np.arange(128)), test=data.test.take(np.arange(60)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data_loader.DATASETS, "DIGITS", data_loader.DATASETS["DIGITS"]._replace(read=few))
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A short training of each of METHODS."""
    root = tmp_path_factory.mktemp("runs")
    with few_digits():
        for script, *flags in METHODS.values():
            importlib.import_module(script).main([
                "--model", "resnet8", "--dataset", "DIGITS", "--batch_size", "32", "--lr", "0.05", "--device", "cpu",
                "--num_epochs", "1", "--save_dir", str(root), *flags])
    return root / "DIGITS"


@pytest.fixture(scope="module")
def runs(trained):
    """The runs of METHODS, and their few digits for the tests of a module."""
    with few_digits():
        yield trained


@pytest.fixture
def evaluated(capsys, monkeypatch):
    """evaluated(flags...) -> the JSON that evaluate.py prints. The speed, which takes seconds, is not measured.

    evaluated.said: what it said beside.
    """
    import evaluate
    from deployment import measuring

    def start(*flags):
        capsys.readouterr()
        evaluate.main([*map(str, flags), "--json", "--device", "cpu"])
        out, start.said = capsys.readouterr()
        return json.loads(out)

    monkeypatch.setattr(measuring, "timed", lambda *_: 1)
    return start
