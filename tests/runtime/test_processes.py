"""Two processes on this machine, through Gloo: one run, the numbers of one process."""

import os
import signal
import subprocess
import sys

import engine
import numpy as np
import parallel
import pytest
import torch
from conftest import ROOT
from errors import UserError
from kill import FLAGS, make_images
from processes import CONTEXT, Training, assert_best_agrees, group, lines, load

import data_loader
import losses
import models
from data_loader import Data, Split

CPU, TEACHER = torch.device("cpu"), []


def okddip(model, images, labels, weight):
    peers, targets, leader = model(images)
    return losses.okddip_loss(peers, targets, leader, labels, weight), torch.cat([peers, leader.unsqueeze(1)], 1)


def detached(model, images, labels, weight):
    peers, targets, leader = model(images)
    terms = losses.okddip_loss(peers, targets, leader, labels, weight, detach_targets=True)
    return terms, torch.cat([peers, leader.unsqueeze(1)], 1)


def standing_still():
    """As train_GL.build makes it with --detach_targets: the attention gets no gradient."""
    model = models.OKDDip("resnet8", 10)
    model.aggregation.requires_grad_(False)
    return model


def one(model, images, labels, weight):
    z, e = model(images)
    return losses.one_loss(z, e, labels, weight), z


def kd(model, images, labels, weight):
    z = model(images)
    if not TEACHER:  # the same in every process
        with torch.random.fork_rng():
            torch.manual_seed(5)
            TEACHER.append(models.create_model("resnet14", 10).double().eval())
    with torch.no_grad():
        t = TEACHER[0](images)
    return losses.kd_loss(z, t, labels), z.unsqueeze(1)


METHODS = {
    "OKDDip": (lambda: models.OKDDip("resnet8", 10), okddip, ["stu0", "stu1", "stu2", "stu_"]),
    "OKDDip-detach_targets": (standing_still, detached, ["stu0", "stu1", "stu2", "stu_"]),
    "ONE": (lambda: models.ONE("resnet8", 10, 3), one, ["stu0", "stu1", "stu2"]),
    "KD": (lambda: models.create_model("resnet8", 10), kd, [""]),
}


def made_up(n):
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, n))
    return Data(split, split, [str(i) for i in range(10)], (0.5,) * 3, (0.25,) * 3)


def steps_and_figures(method, path, environment):
    """Three steps in float64, BatchNorm by its statistics, on batches of 8, 8 and 7; then an evaluation of 23 images.

    Saved by each process: weights, loss and hits of the epoch, figures, and the logits that these are of.
    """
    os.environ.update(environment)
    torch.set_num_threads(1)
    parallel.start(CPU)
    build, objective, rows = METHODS[method]
    torch.manual_seed(0)
    data, kept = made_up(23), []

    def predict(model, images):
        z = objective(model, images.double(), torch.zeros(len(images), dtype=torch.int64), 0.3)[1]
        kept.append(z)
        return z, {}

    described = engine.Method(dict.fromkeys(rows, ""), objective, predict, "")
    trainer = engine.Trainer(build().double(), described, 0.05, 5e-4, [10], CPU)
    loader = data_loader.Cached(data.train, data, 8, CPU, augment=True)
    trainer.model.eval()
    for (images, labels), share in zip(loader, loader.shares(), strict=True):
        trainer.step(images.double(), labels, 0.3, share)
    means = trainer.means()
    figures = engine.evaluate(described, trainer.model, data_loader.Cached(data.test, data, 8, CPU))
    torch.save({"weights": trainer.model.state_dict(), "means": means, "figures": figures, "logits": kept,
                "state": trainer.tally.state_dict()}, f"{path}{parallel.rank()}")


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_give_the_weights_of_one(method, tmp_path):
    alone = {"RANK": "0", "WORLD_SIZE": "1"}
    started = [CONTEXT.Process(target=steps_and_figures, args=(method, f"{tmp_path}/{name}", environment))
               for name, environments in (("one", [alone]), ("two", group(2))) for environment in environments]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    whole, *halves = (torch.load(tmp_path / name, weights_only=True) for name in ("one0", "two0", "two1"))
    for half in halves:
        for name, value in whole["weights"].items():
            assert value.allclose(half["weights"][name], rtol=1e-10, atol=1e-12), name
        assert half["means"]["hits"] == whole["means"]["hits"]
        assert half["means"]["terms"] == pytest.approx(whole["means"]["terms"], rel=1e-10)
        assert half["figures"] == pytest.approx(whole["figures"], rel=1e-9)
        assert half["state"]["images"] == 23
    # the accuracies are those of the logits that were saved: each image once, 12 and 11 of them
    labels = torch.from_numpy(made_up(23).test.labels)
    parts = [torch.cat(batch) for batch in zip(*(half["logits"] for half in halves), strict=True)]
    assert [len(z) for half in halves for z in half["logits"]] == [4, 4, 3, 4, 4, 4]
    right = (torch.cat(parts).argmax(-1) == labels.unsqueeze(1)).double().mean(0)
    for r, row in enumerate(METHODS[method][2]):
        assert halves[0]["figures"][f"{row}test_accTop1"] == pytest.approx(100 * right[r].item(), rel=1e-12)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("n", [24, 29, 31, 36])
def test_every_image_is_one_process_s(size, augment, n, monkeypatch):
    """The parts of a batch are the batch of one process, none of them empty, in training none of a single image."""
    data = made_up(n)
    parts = []
    for environment in group(size):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        loader = data_loader.Cached(data.train, data, 12, CPU, augment=augment)
        loader.set_epoch(3)
        parts.append(list(loader))
        assert min(len(labels) for _, labels in parts[-1]) >= (2 if augment else 1)
        assert [len(labels) * size / (b - a) for (_, labels), (a, b) in zip(parts[-1], loader.bounds(), strict=True)
                ] == loader.shares()
    together = [torch.cat([images for images, _ in step]) for step in zip(*parts, strict=True)]
    monkeypatch.delenv("RANK")
    alone = data_loader.Cached(data.train, data, 12, CPU, augment=augment)
    alone.set_epoch(3)
    assert torch.cat(together).equal(torch.cat([images for images, _ in alone]))


def set_size(monkeypatch, size):
    for name, value in group(size)[0].items():
        monkeypatch.setenv(name, value)


def test_a_lone_variable_means_nothing(monkeypatch):
    """Cluster images set some of torchrun's variables in every shell."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parallel.world_size() == 1 and parallel.rank() == 0 and parallel.is_main()


def test_a_batch_must_be_shared_out_evenly(monkeypatch):
    set_size(monkeypatch, 3)
    with pytest.raises(UserError, match="--batch_size 128 cannot be shared out evenly among 3"):
        data_loader.dataloader("DIGITS", 128)
    set_size(monkeypatch, 400)
    with pytest.raises(UserError, match="fewer images to evaluate"):
        data_loader.dataloader("DIGITS", 400)


# --- runs


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    images = make_images(tmp_path_factory.mktemp("data") / "images", per_class=46)
    return [*FLAGS, "--log_every", "1", "--data_dir", str(images), "--resume", "auto", "--save_dir"]


def both(flags, where, *more):
    return [Training("train_GL", [*flags, where, *more], where / f"process{r}", **environment)
            for r, environment in enumerate(group(2))]


def folder_of(where):
    return where / "folder" / "OKDDip" / "resnet8"


def test_a_run_of_two_processes(flags, tmp_path):
    """The files of a run, written by the first one; more epochs of it with one process, and again with two."""
    for epochs, processes in ((2, 2), (3, 1), (4, 2)):
        more = "--num_epochs", epochs
        started = both(flags, tmp_path, *more) if processes == 2 else [
            Training("train_GL", [*flags, tmp_path, *more], tmp_path / "process0")]
        for training in started:
            assert training.wait() == 0, training.said()
        assert [line["epoch"] for line in lines(folder_of(tmp_path))] == list(range(1, epochs + 1))
    assert_best_agrees(folder_of(tmp_path))
    starts = load(folder_of(tmp_path))["starts"]
    assert [(start["epoch"], start["environment"]["processes"]) for start in starts] == [(1, 2), (3, 1), (4, 2)]
    assert "epoch" not in (tmp_path / "process1" / "output.txt").read_text()  # it leaves the word to the first one


@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_ends_the_run(dies, flags, tmp_path):
    started = both(flags, tmp_path, "--num_epochs", 200)
    started[0].until(lambda: "epoch 2/200  step 1" in started[0].said())
    started[dies].signal(signal.SIGKILL)
    left = started[1 - dies]
    assert left.wait(60) == 2 and "another process of this run has ended: --resume auto" in left.said()
    assert "Traceback" not in left.said() and len(load(folder_of(tmp_path))["history"]) >= 1
    started = both(flags, tmp_path, "--num_epochs", 200)
    started[0].until(lambda: "continues after" in started[0].said())
    for training in started:  # a batch system tells all of them, not at the same time
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


def test_torchrun(flags, tmp_path):
    """As the README has it; a mistake is told once."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                ROOT / "train_one.py", *flags, tmp_path, "--num_epochs", "1"]
    done = subprocess.run(torchrun, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(lines(tmp_path / "folder" / "ONE" / "resnet8")) == 1 and done.stdout.count("done: best epoch 1") == 1
    done = subprocess.run([*torchrun, "--version", "other", "--batch_size", "1000"], capture_output=True, text=True)
    assert done.returncode != 0 and done.stderr.count("error: --batch_size must lie between") == 1


def test_sync_bn_needs_gpus(flags, tmp_path):
    training = Training("train_GL", [*flags, tmp_path, "--sync_bn"], tmp_path)
    assert training.wait() == 2 and "--sync_bn needs GPUs" in training.said()


def test_sync_bn_keeps_the_names_of_weights(monkeypatch):
    """What is converted on GPUs: every BatchNorm, with the same state dict."""
    model = models.ONE("resnet8", 10, 3)
    names = list(model.state_dict())
    set_size(monkeypatch, 2)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda model, **options: model)
    converted = parallel.replicated(model, CPU, sync_bn=True)
    kinds = {type(m).__name__ for m in converted.modules() if "Norm" in type(m).__name__}
    assert kinds == {"SyncBatchNorm"} and list(converted.state_dict()) == names
    models.count_batches(converted, 3)  # they count for themselves
    assert not any(v for k, v in converted.state_dict().items() if k.endswith("num_batches_tracked"))
