"""What gpu.sh measures, with a stand-in for the Python of .venv; tests/benchmarks/ runs step.py."""

import os
import shutil
import subprocess

import pytest
from conftest import ROOT


@pytest.fixture
def measure(tmp_path, executable):
    """measure(failing, *flags) -> gpu.sh, finished, and its commands, of which those with ``failing`` failed."""
    for folder in ("scripts", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("gpu.sh", "setup.sh"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")

    def start(failing, *flags, **environment):
        executable(tmp_path / ".venv/bin/python", f'echo "$@" >> log\ncase "$*" in *"{failing}"*) exit 2 ;; esac')
        done = subprocess.run(["sh", "scripts/gpu.sh", *flags], cwd=tmp_path, capture_output=True, text=True,
                              env=os.environ | environment)
        return done, [line for line in (tmp_path / "log").read_text().splitlines() if " pip " not in f" {line} "]

    return start


def test_what_is_measured(measure):
    done, (first, tests, *steps) = measure("vgg16")
    assert done.returncode == 1  # the others are measured all the same
    assert "--device cuda" in first and "-m gpu" in tests and all("--device cuda --model" in line for line in steps)
    assert [line.split()[4] for line in steps] == [
        "resnet32", "densenetd40k12", "vgg16", "resnet110", "wide_resnet20_8", "resnet34", *["resnet32"] * 8]
    assert all(mode in line for mode, line in zip(("--compile", "--tf32", "--amp bf16"), steps[6:9], strict=True))
    assert len(set(steps[9:])) == 1 and "--ours" in steps[9]  # one, then four at a time


@pytest.mark.parametrize("failing", ["-m pytest", "--amp bf16", "--rounds 100"])
def test_a_failure_is_told_at_the_end(measure, failing):
    done, lines = measure(failing, "--batch_size", "8", MODELS="resnet8")
    assert done.returncode == 1 and len(lines) == 2 + 1 + 3 + 1 + 4
    assert all("--model resnet8 " in line and line.endswith("--batch_size 8") for line in lines[2:])


def test_without_a_gpu_nothing_is_measured(measure):
    done, lines = measure("--device cuda")
    assert done.returncode == 2 and len(lines) == 1
