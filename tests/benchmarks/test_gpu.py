"""scripts/gpu.sh without a GPU, and what becomes of its results."""

import json

import pytest
import torch
from conftest import ROOT

from benchmarks import cost, gpu
from runtime.errors import UserError


@pytest.mark.slow
def test_on_a_cpu(script, tmp_path):
    """The same code as on a GPU, in small. Nothing is written where the results of GPUs are."""
    before = sorted(cost.MEASURED.glob("*"))
    out = tmp_path / "here" / "cpu.json"
    done = script("benchmarks/gpu.py", "--device", "cpu", "--quick", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["quick"] and found["machine"]["kind"] == "cpu"
    assert found["tests_passed"] and found["steps"].keys() == {"resnet8", "resnet8 --tf32", "resnet8 --amp bf16"}
    assert all(ms.keys() == {"OKDDip", "OKDDip, plain"} and min(ms.values()) > 0 for ms in found["steps"].values())
    assert found["side_by_side"].keys() == {"1", "4"} and min(found["side_by_side"].values()) > 0
    assert found["operations_per_second"]["resnet8"] > 0
    assert "table5.sh" in done.stdout and f"written: {out}" in done.stdout
    assert sorted(cost.MEASURED.glob("*")) == before


@pytest.mark.parametrize(("flags", "said"), [
    pytest.param([], "PyTorch finds no GPU here: --device cpu --quick tries the same code without one",
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")),
    (["--device", "cpu"], "--device cpu needs --quick"),
    (["--device", "cpu", "--quick", "--out", str(ROOT / "results" / "gpu" / "a.json")], "--quick measures nothing")])
def test_no_figure_is_of_a_gpu_that_was_not_used(flags, said):
    with pytest.raises(UserError, match=said):
        gpu.main(flags)


def test_the_page_about_hardware_names_the_measured_gpus():
    page = " ".join((ROOT / "docs" / "hardware.md").read_text().split())
    names = cost.measured(cost.MEASURED)
    nothing_measured = "No GPU has been measured with `scripts/gpu.sh` yet" in page
    assert nothing_measured == (not names) and all(name in page for name in names)
