"""Two processes on this machine, through Gloo: one run, the numbers of one process."""

import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch
from conftest import ROOT
from image_data import make_images
from processes import FLAGS, Training, assert_best_agrees, be_one_of, group, in_processes, lines, load
from torch.distributed import distributed_c10d

import data_loader
import models
import train
import train_GL
from benchmarks import compare
from runtime import processes
from runtime.errors import UserError
from training import loop
from training.loop import Stepper
from training.metrics import evaluate, in_rows

CPU = torch.device("cpu")


class Unused(torch.nn.Module):
    """A network from elsewhere with weights that it does not use."""

    def __init__(self, num_classes):
        super().__init__()
        self.unused, self.fc = torch.nn.Linear(2, 2), torch.nn.Linear(3 * 32 * 32, num_classes)

    def forward(self, x):
        return self.fc(x.flatten(1))


SLOW = ("KD", "FFL", "OKDDip-detach_targets")
METHODS = {"OKDDip": {}, "OKDDip-detach_targets": {"detach_targets": True}, "ONE": {"num_branches": 3}, "KD": {},
           "FFL": {}, "PCL": {}, "KDCL": {"target": "general", "val_size": 23},
           "Ind": {"model": Unused, "MulStu": True}, "OKDPH-dirichlet": {"hybrid": "dirichlet", "interval": "5_batch"},
           "OKDPH-hybrid_gradient": {"hybrid_gradient": True}}


def make(name):
    """A method on resnet8 in float64, the same in every process."""
    torch.manual_seed(0)
    method = compare.method(name, 10, **{"model": "resnet8", **METHODS[name]})
    method.model.double()
    if name == "KD":
        method.teacher = models.create_model("resnet14", 10).double().eval().requires_grad_(False)
    return method


def steps_and_metrics(name, path, environment):
    """Three steps in float64, BatchNorm by its statistics, on batches of 8, 8 and 7; what follows an epoch; then an
    evaluation of 23 images.

    Each process saves its weights, the means of the epoch, the metrics, and the logits that the metrics are made of.
    """
    os.environ.update(environment)
    processes.start(CPU)
    method, data, kept = make(name), compare.random_data(23, 23, seed=0), []
    stepper = Stepper(method, 0.05, 5e-4, [10], CPU)
    loader = data_loader.Cached(data.train, data, 8, CPU, augment=True, views=method.views(method.args))
    method.model.train()
    for module in method.model.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.eval()
    for (images, labels), share in zip(loader, loader.shares(), strict=True):
        stepper.step(images.double(), labels, 0.3, share)
    means = stepper.means()
    predict = method.predict

    def predict_and_keep(images):
        z, _ = predict(images.double())
        kept.append(in_rows(z, method.outputs))
        return z, {}

    method.predict = lambda images: predict(images.double())
    method.after_epoch(data_loader.Cached(data.test, data, 8, CPU), stepper.autocast())
    method.predict = predict_and_keep
    metrics = evaluate(method, data_loader.Cached(data.test, data, 8, CPU))
    torch.save({"weights": method.model.state_dict(), "means": means, "metrics": metrics, "logits": kept,
                "state": stepper.sums.state_dict(), "outputs": list(method.outputs)}, f"{path}{processes.rank()}")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in METHODS])
def test_two_processes_give_the_weights_of_one(name, tmp_path):
    alone = {"RANK": "0", "WORLD_SIZE": "1"}
    in_processes(steps_and_metrics, [(name, f"{tmp_path}/{where}", environment) for where, environments in (
        ("one", [alone]), ("two", group(2))) for environment in environments])
    whole, *halves = (torch.load(tmp_path / where, weights_only=True) for where in ("one0", "two0", "two1"))
    for half in halves:
        for key, value in whole["weights"].items():
            assert value.allclose(half["weights"][key], rtol=1e-10, atol=1e-12), key
        assert half["means"]["correct"] == whole["means"]["correct"]
        assert half["means"]["terms"] == pytest.approx(whole["means"]["terms"], rel=1e-10)
        assert half["metrics"] == pytest.approx(whole["metrics"], rel=1e-9)
        assert half["state"]["images"] == 23
    # The accuracies are those of the saved logits: each image once, 12 in one process and 11 in the other.
    labels = torch.from_numpy(compare.random_data(23, 23, seed=0).test.labels)
    parts = [torch.cat(batch) for batch in zip(*(half["logits"] for half in halves), strict=True)]
    assert [len(z) for half in halves for z in half["logits"]] == [4, 4, 3, 4, 4, 4]
    correct = (torch.cat(parts).argmax(-1) == labels.unsqueeze(1)).double().mean(0)
    for r, output in enumerate(whole["outputs"]):
        accuracy = halves[0]["metrics"][f"{output}test_accTop1"]
        assert accuracy == pytest.approx(100 * correct[r].item(), rel=1e-12)


def keep_what_is_evaluated(argv, path, environment):
    """A training whose processes save the BatchNorm statistics that are evaluated, and what they draw then."""
    os.environ.update(environment)
    evaluated = loop.evaluate

    def keep(method, *rest):
        kept = {"statistics": dict(method.model.named_buffers()), "seed": torch.initial_seed(), "drawn": torch.rand(5)}
        torch.save(kept, f"{path}{processes.rank()}")
        return evaluated(method, *rest)

    loop.evaluate = keep
    train.main(argv)


def test_all_evaluate_the_statistics_of_the_first_and_draw_their_own_numbers(flags, tmp_path):
    argv = [*flags, str(tmp_path), "--num_epochs", "1", "--seed", "5"]
    in_processes(keep_what_is_evaluated, [(argv, f"{tmp_path}/", environment) for environment in group(2)])
    first, second = (torch.load(tmp_path / rank, weights_only=True) for rank in "01")
    assert all(value.equal(second["statistics"][name]) for name, value in first["statistics"].items())
    assert first["seed"] == 5 and not first["drawn"].equal(second["drawn"])


def test_each_process_needs_an_image_to_evaluate(monkeypatch):
    be_one_of(monkeypatch, group(360)[0])
    _, test = data_loader.dataloader("DIGITS", 360)
    assert test.num_images == 360  # one for each process
    assert data_loader.evaluation_batch(360, data_loader.DATASETS["DIGITS"], torch.device("cuda")) == 360 * 1024
    with pytest.raises(UserError, match="fewer images to evaluate than the 360"):
        data_loader.dataloader("DIGITS", 360, val_size=359)
    be_one_of(monkeypatch, group(400)[0])
    with pytest.raises(UserError, match="fewer images to evaluate"):
        data_loader.dataloader("DIGITS", 400)


# --- runs


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    images = make_images(tmp_path_factory.mktemp("data") / "images", 46, 46)
    return [*FLAGS, "--log_every", "1", "--data_dir", str(images), "--resume", "auto", "--save_dir"]


def both(flags, where, *more):
    return [Training("train_GL", [*flags, where, *more], where / f"process{r}", **environment)
            for r, environment in enumerate(group(2))]


def folder_of(where):
    return where / "folder" / "OKDDip" / "resnet8"


def test_a_run_of_two_processes(flags, tmp_path):
    """The files of a run, written by the first one; one more epoch of it with one process, and again with two."""
    for epochs in (1, 2, 3):
        if epochs == 2:
            train_GL.main([*flags, str(tmp_path), "--num_epochs", "2"])
            continue
        for training in both(flags, tmp_path, "--num_epochs", epochs):
            assert training.wait() == 0, training.said()
    assert [line["epoch"] for line in lines(folder_of(tmp_path))] == [1, 2, 3]
    assert_best_agrees(folder_of(tmp_path))
    starts = load(folder_of(tmp_path))["starts"]
    assert [(start["epoch"], start["environment"]["processes"]) for start in starts] == [(1, 2), (2, 1), (3, 2)]
    assert "epoch" not in (tmp_path / "process1" / "output.txt").read_text()  # only the first one writes


@pytest.mark.parametrize("dies", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_dies_ends_the_run(dies, flags, tmp_path):
    started = both(flags, tmp_path, "--num_epochs", 200)
    started[0].until(lambda: "epoch 2/200  step 1" in started[0].said())
    started[dies].signal(signal.SIGKILL)
    left = started[1 - dies]
    assert left.wait(60) == 2 and "another process of this run has ended: --resume auto" in left.said()
    assert "Traceback" not in left.said() and len(load(folder_of(tmp_path))["history"]) >= 1
    started = both(flags, tmp_path, "--num_epochs", 200)
    started[0].until(lambda: "continues after" in started[0].said())
    for training in started:  # a batch system signals all of them, at different times
        training.signal(signal.SIGTERM)
    assert [training.wait(30) for training in started] == [128 + signal.SIGTERM] * 2
    assert "stopped by signal 15" in started[0].said() and load(folder_of(tmp_path))["state_dict"]


def test_the_processes_agree_on_the_step(flags, tmp_path):
    """The signal comes to the second alone; the run that goes on ends in the weights of one that was not stopped."""
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    started = both(flags, stopped, "--num_epochs", 3)
    started[0].until(lambda: "epoch 2/3  step 1" in started[0].said())
    started[1].signal(signal.SIGTERM)
    assert [training.wait(30) for training in started] == [128 + signal.SIGTERM] * 2
    assert len(load(folder_of(stopped))["history"]) < 3
    for where in (stopped, whole):
        for training in both(flags, where, "--num_epochs", 3):
            assert training.wait() == 0, training.said()
    ours, theirs = (load(folder_of(where))["state_dict"] for where in (stopped, whole))
    assert all(value.equal(ours[name]) for name, value in theirs.items())


def wait_for_the_first(environment):
    """The first process takes longer than PyTorch lets the others wait: it decodes a large data set."""
    os.environ.update(environment)
    distributed_c10d.default_pg_timeout = timedelta(seconds=3)
    processes.start(CPU)
    assert processes.on_main(lambda: time.sleep(5) or "read") == "read"
    processes.leave()


def test_the_others_wait_long_for_the_first_process():
    in_processes(wait_for_the_first, [(environment,) for environment in group(2)])


@pytest.mark.slow
def test_two_nodes(flags, tmp_path):
    """The commands of docs/running.md, with one process on each node."""
    port = group(2)[0]["MASTER_PORT"]
    page = (ROOT / "docs" / "running.md").read_text()
    commands = re.findall(r"^torchrun (--nnodes=2 .*) train_GL.py", page, re.MULTILINE)
    assert len(commands) == 2
    nodes = []
    for command in commands:
        words = command.replace("node0:29500", f"127.0.0.1:{port}").replace("per_node=4", "per_node=1").split()
        words = ["-m", "torch.distributed.run", *words, ROOT / "train_GL.py", *flags, tmp_path, "--num_epochs", "1"]
        nodes.append(subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                      text=True))
    said = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "done: best epoch 1" in said[0] and "epoch" not in said[1]  # only the first process writes
    assert load(folder_of(tmp_path))["starts"][0]["environment"]["processes"] == 2


def test_torchrun(flags, tmp_path):
    """A mistake is printed once."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                ROOT / "train_one.py", *flags, tmp_path, "--batch_size", "1000"]
    done = subprocess.run(torchrun, capture_output=True, text=True)
    said = "error: --batch_size must lie between 1 and the 92 training images of folder, not 1000"
    printed = done.stderr.splitlines()
    assert done.returncode != 0 and printed.count(said) == 1
    assert printed[-2].strip() == f"traceback : {said}"  # torchrun's summary ends with it, and with a frame
