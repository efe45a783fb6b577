"""On a GPU: the same numbers as on the CPU, and nothing that makes the host wait. Skipped where there is no GPU.

Most tests also run on the CPU, once, to show that their body is right. The others name their twin, the test that checks
the same without a GPU. ``sh scripts/gpu.sh`` runs this file and measures.
"""

import gc
import os
from functools import partial

import pytest
import torch
from conftest import few_digits
from prepared import Prepared
from processes import group, in_processes, lines, load, without_times

import data_loader
import methods
import models
import train_GL
import training.run
from benchmarks import compare
from runtime import processes
from runtime.device import pick_device
from training.loop import Stepper

ONE_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def on_the_gpu(*cases, slow=False):
    """Parameters: each case on the GPU, the first one also on the CPU; there with --runslow only, if it is slow."""
    return [pytest.param("cpu", *cases[0], marks=[pytest.mark.slow] * slow),
            *(pytest.param("cuda", *case, marks=ONE_GPU) for case in cases)]


slow_on_the_cpu = pytest.mark.parametrize("device", on_the_gpu((), slow=True))
CASES = [*methods.METHODS, *(f"OKDDip-{name}" for name in models.AGGREGATIONS if name not in ("attention", "random"))]


@pytest.fixture
def prepare(monkeypatch, tmp_path):
    """prepare("ONE", "cuda", "--amp", "fp16") -> Prepared, with resnet8 and the same weights on every device."""
    return lambda name, device, *flags, **options: Prepared(
        monkeypatch, name, "--save_dir", str(tmp_path), "--device", device, *flags, **{"images": (24, 40)} | options)


# --- the numbers of a step --------------------------------------------------------------------------------------------


def after_one_step(prepared):
    """Terms and correct answers of a step, and the weights and statistics after it."""
    images, labels = next(iter(prepared.train_loader))
    prepared.trainer.step(images, labels, 0.5)
    return prepared.trainer.means(), {key: value.cpu() for key, value in prepared.method.model.state_dict().items()}


@pytest.mark.parametrize(("device", "name", "dtype", "tolerance"), on_the_gpu(
    ("OKDDip", torch.float32, 2e-3), *((name, torch.float64, 1e-9) for name in CASES)))
def test_a_step_gives_the_numbers_of_the_cpu(name, dtype, tolerance, device, prepare):
    expected, weights = after_one_step(prepare(name, "cpu", dtype=dtype))
    found, ours = after_one_step(prepare(name, device, dtype=dtype))
    assert found["terms"] == pytest.approx(expected["terms"], rel=tolerance)
    for row, right in zip(found["correct"], expected["correct"], strict=True):
        assert row == pytest.approx(right, abs=0 if dtype == torch.float64 else 1 / 8)  # an image between two classes
    for key, value in weights.items():
        assert ours[key].allclose(value, rtol=tolerance, atol=tolerance), key


@pytest.mark.parametrize("device", on_the_gpu(()))
def test_a_first_step_that_fp16_skips_leaves_no_trace(device, prepare):
    """Its gradients overflow: weights and momentum stay, the scale is halved. Later steps train."""
    trainer, loader = (p := prepare("baseline", device, "--amp", "fp16")).trainer, p.train_loader
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 1e38})
    before = [p.detach().clone() for p in trainer.model.parameters()]
    images, labels = next(iter(loader))
    trainer.step(images, labels, 0.5)
    assert trainer.scaler.get_scale() == pytest.approx(5e37)
    assert all(p.equal(b) for p, b in zip(trainer.model.parameters(), before, strict=True)), "the step was not skipped"
    assert not any(s["momentum_buffer"].any() for s in trainer.optimizer.state.values())
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 128.0})
    trainer.step(images, labels, 0.5)
    assert not any(p.equal(b) for p, b in zip(trainer.model.parameters(), before, strict=True))
    assert all(p.isfinite().all() for p in trainer.model.parameters())


# --- CUDA graphs ------------------------------------------------------------------------------------------------------


def two_epochs(prepared):
    """The records of two epochs of ten steps, the last one smaller, with other weights w(e); and the weights."""
    assert len(prepared.train_loader) == 10 and prepared.train_loader.num_images % 8 == 5
    prepared.run.args.length = 2.0
    found = [without_times(prepared.epoch()) for _ in range(2)]
    return found, [p.detach().cpu() for p in prepared.trainer.model.parameters()]


@pytest.mark.parametrize(("device", "name"), on_the_gpu(
    ("OKDDip",), ("KD",), ("FFL",), ("PCL",), ("KDCL",), ("OKDPH",), slow=True))
def test_compiled_steps_give_the_numbers_of_eager_ones(name, device, prepare, monkeypatch):
    """In float64: twenty steps in float32 make differences in rounding too large to compare.

    On the CPU, the backend of torch.compile makes forward and backward graphs, but PyTorch runs them. Inductor, which
    makes code of them, takes half a minute.
    """
    from torch._dynamo.utils import counters
    from torch._inductor.cudagraph_trees import get_manager

    if device == "cpu":
        compiler = partial(torch.compile, backend="aot_eager")
        monkeypatch.setattr(torch, "compile", lambda f, mode, dynamic: compiler(f, dynamic=dynamic))
    flags, options = ("--lr", "0.01"), {"images": (77, 40), "dtype": torch.float64}
    expected, weights = two_epochs(prepare(name, device, *flags, **options))
    counters.clear()
    found, ours = two_epochs(prepare(name, device, *flags, "--compile", **options))
    assert counters["stats"]["unique_graphs"] >= 1, "nothing was compiled"
    if device == "cuda":
        assert get_manager(0, create_if_none_exists=False).roots and not counters["inductor"]["cudagraph_skips"]
    for epoch, right in zip(found, expected, strict=True):
        assert epoch.keys() == right.keys()
        for key, value in right.items():
            assert torch.tensor(epoch[key]).allclose(torch.tensor(value), rtol=1e-6, atol=1e-6), key
    assert all(a.allclose(b, rtol=1e-6, atol=1e-6) for a, b in zip(ours, weights, strict=True))


# --- waiting, memory --------------------------------------------------------------------------------------------------


@pytest.fixture
def watch():
    """watch(batches) yields them. From the second one to the last, an operation that makes the host wait raises."""
    def watched(batches):
        batches = iter(batches)
        yield next(batches)
        torch.cuda.set_sync_debug_mode("error")
        yield from batches
        torch.cuda.set_sync_debug_mode("default")

    yield watched
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("name", "flags"), [pytest.param(*case, marks=ONE_GPU) for case in [
    *((name, ()) for name in [*CASES, "OKDDip-random"]), ("OKDDip", ("--amp", "fp16")), ("OKDDip", ("--amp", "bf16"))]])
def test_no_step_and_no_evaluation_waits_for_the_gpu(name, flags, prepare, watch):
    """Twin: test_fake_cuda.py, test_an_epoch."""
    prepared = prepare(name, "cuda", *flags, images=(40, 2100))
    prepared.watch = watch
    prepared.epoch()


def held(device):
    """Bytes in tensors."""
    gc.collect()
    if device == "cuda":
        return torch.cuda.memory_allocated()
    return sum(t.untyped_storage().nbytes() for t in gc.get_objects() if issubclass(type(t), torch.Tensor))


@slow_on_the_cpu
def test_memory_is_flat(device, prepare):
    prepared = prepare("OKDDip", device)
    images, labels = next(iter(prepared.train_loader))
    sizes = []
    for count in (5, 300 if device == "cuda" else 20):
        for _ in range(count):
            prepared.trainer.step(images, labels, 0.5)
        sizes.append(held(device))
    assert sizes[0] == sizes[1] > 0


# --- loaders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "cache"), on_the_gpu((True,), (False,)))
def test_loaders_give_the_bits_of_the_cpu(device, cache, monkeypatch):
    """Every batch is kept, and compared after the last. The GPU is busy meanwhile, so copies to it come late."""
    data = compare.random_data(77, 40, seed=0)
    monkeypatch.setitem(data_loader.DATASETS, "DIGITS", data._replace(read=lambda root, test_only: data))
    expected = data_loader.dataloader("DIGITS", 8, 2)
    loaders = data_loader.dataloader("DIGITS", 8, 2, device=device, cache=cache)
    work = torch.randn(*([4096, 4096] if device == "cuda" else [4, 4]), device=device)
    for ours, cpu in zip(loaders, expected, strict=True):
        for epoch in (0, 1):
            ours.set_epoch(epoch)
            cpu.set_epoch(epoch)
            batches = []
            for batch in ours:
                batches.append(batch)
                for _ in range(20):
                    work = (work @ work).tanh()
            for found, right in zip(zip(*batches, strict=True), zip(*cpu, strict=True), strict=True):
                assert torch.cat(found).cpu().equal(torch.cat(right))
        ours.close()


# --- checkpoints ------------------------------------------------------------------------------------------------------


FLAGS = ["--model", "resnet8", "--dataset", "DIGITS", "--batch_size", "32", "--lr", "0.05", "--length", "0",
         "--aggregation", "random"]
RUN = "DIGITS/OKDDip-random/resnet8"


@pytest.fixture
def deterministic(monkeypatch):
    """cuDNN's search for the fastest algorithm may choose another one in each run."""
    def choose(tf32):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True

    monkeypatch.setattr(training.run, "set_precision", choose)
    with few_digits():
        yield
    torch.backends.cudnn.deterministic = False


@slow_on_the_cpu
def test_resuming(device, deterministic, tmp_path):
    """The weights of two epochs in one go; the targets are random: the device's generator is restored, too.

    Then on the CPU and back: a file opens without a GPU. Without map_location, a tensor of a GPU would need one.
    """
    def train(where, epochs, on):
        train_GL.main([*FLAGS, "--device", on, "--num_epochs", str(epochs), "--schedule", "5", "--resume", "auto",
                       "--save_dir", str(tmp_path / where)])
        return load(tmp_path / where / RUN)

    whole = train("whole", 2, device)["state_dict"]
    train("parts", 1, device)
    parts = train("parts", 2, device)["state_dict"]
    assert all(parts[key].allclose(value, rtol=1e-4, atol=1e-4) for key, value in whole.items())
    for epochs, on in ((3, "cpu"), (4, device)):
        state = train("parts", epochs, on)
        tensors = [*state["state_dict"].values(), *(s["momentum_buffer"] for s in state["optimizer"]["state"].values()),
                   *state["sums"]["sums"].values()]
        assert all(t.device.type == "cpu" and t.isfinite().all() for t in tensors)
    losses = [line["train_loss"] for line in lines(tmp_path / "parts" / RUN)]
    assert losses[0] > losses[1] > losses[2] > losses[3]


# --- several GPUs -----------------------------------------------------------------------------------------------------


def steps_of_a_process(path, environment):
    """Three steps of ONE in float64, on batches of 8, 8 and 7 images. Each process saves its weights."""
    os.environ.update(environment)
    device = pick_device("cuda", sync_bn=True)
    processes.start(device)
    torch.manual_seed(0)
    method, data = compare.method("ONE", 10, model="resnet8"), compare.random_data(23, 0, seed=0)
    method.model.double()
    trainer = Stepper(method, 0.05, 5e-4, [10], device, sync_bn=True)
    loader = data_loader.Cached(data.train, data, 8, device, augment=True)
    method.model.train()
    for (images, labels), share in zip(loader, loader.shares(), strict=True):
        trainer.step(images.double(), labels, 0.3, share)
    means, weights = trainer.means(), {name: value.cpu() for name, value in method.model.state_dict().items()}
    torch.save({"weights": weights, "terms": means["terms"], "correct": means["correct"]}, path)
    processes.leave()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_the_weights_of_one(tmp_path):
    """With --sync_bn, so that BatchNorm sees the whole batch, whose parts may differ in size.

    Twin: runtime/test_processes.py, test_two_processes_give_the_weights_of_one.
    """
    in_processes(steps_of_a_process, [(tmp_path / f"{len(several)}{r}", one)
                                      for several in (group(1), group(2)) for r, one in enumerate(several)])
    whole, *halves = (torch.load(tmp_path / name, weights_only=True) for name in ("10", "20", "21"))
    for half in halves:
        assert half["correct"] == whole["correct"] and half["terms"] == pytest.approx(whole["terms"], rel=1e-9)
        for key, value in whole["weights"].items():
            if "num_batches" not in key:
                assert value.allclose(half["weights"][key], rtol=1e-8, atol=1e-10), key
