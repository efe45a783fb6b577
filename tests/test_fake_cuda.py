"""Every script on a fake CUDA device (fake_cuda.py), on every machine: training, evaluation and loaders.

What makes a GPU stop or wait fails here: tensors on two devices, a host that waits between the first and the last
batch, more kernels than KERNELS allows. There are no results to compare; tests/test_cuda.py compares those of a real
GPU.
"""

import pytest
import torch
from fake_cuda import HostWaits, backward, fake_cuda
from prepared import VARIANTS, Prepared
from torch.utils._pytree import tree_leaves

import data_loader
import methods
from deployment.measuring import calibration_and_class_sums
from runtime.checkpoints import on_cpu
from runtime.device import pick_device
from training.loop import Stepper
from training.metrics import evaluate

# Kernels of a training step of resnet8 (forward, loss, backward, optimizer, metrics), with 10 classes and the flags'
# defaults: an upper bound. A new method is one line. A change that launches fewer kernels lowers its number.
KERNELS = {
    "baseline": 94, "KD": 141, "Ind": 183, "DML": 340, "CL-ILR": 214, "ONE": 227, "OKDDip-N": 367, "OKDDip": 238,
    "FFL": 243, "PCL": 588, "KDCL": 328, "OKDPH": 393}


class Watched(Prepared):
    """Training and evaluation on the fake device. loading, computing: the kernels of each batch."""

    def __init__(self, gpu, patch, name, *flags, batches=(2, 2)):
        """batches: in training, in the evaluation."""
        train, test = batches
        super().__init__(patch, name, "--device", "cuda", *flags, images=(8 * train, 1024 * test))
        self.gpu, self.loading, self.computing = gpu, [], []

    def watch(self, batches):
        """In the place of ``Signals.watch``: count kernels, and forbid waits from the first batch to the last.

        The first batch may be preceded by a copy of the epoch's order.
        """
        iterator, first = iter(batches), True
        while True:
            with self.gpu.watch(may_copy=first) as kernels:
                batch = next(iterator, None)
            first = False
            if batch is None:
                return
            self.loading.append(sum(kernels.values()))
            with self.gpu.watch() as kernels:
                yield batch
            self.computing.append(sum(kernels.values()))


@pytest.fixture
def prepare(monkeypatch, tmp_path):
    """prepare("ONE", "--amp", "bf16") -> Watched."""
    with fake_cuda() as gpu:
        yield lambda name, *flags, **options: Watched(gpu, monkeypatch, name, "--save_dir", str(tmp_path), *flags,
                                                      **options)


# --- every method ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*methods.METHODS, *VARIANTS])
def test_an_epoch(name, prepare):
    """The kernels are those of the second batch: the first one also makes the sums and moves parameters."""
    training = prepare(name, *["--num_branches", "3"] * (name in VARIANTS), batches=(2, 1))
    assert training.run.method == name
    training.epoch()
    assert len(training.computing) == 3 and training.computing[1] <= (999 if name in VARIANTS else KERNELS[name])
    assert training.loading[1] <= (12 if training.train_loader.views > 1 else 8)


@pytest.mark.parametrize(("name", "amp"), [("baseline", "bf16"), ("OKDDip", "fp16"), ("OKDDip", "bf16"),
                                           ("ONE", "fp16"), ("FFL", "bf16"), ("PCL", "fp16"), ("OKDPH", "fp16")])
def test_an_epoch_in_half_precision(name, amp, prepare):
    training = prepare(name, "--amp", amp, batches=(1, 1))
    training.epoch()
    assert len(training.computing) == 2 and training.trainer.scaler.is_enabled() == (amp == "fp16")
    with training.trainer.autocast():
        logits, _ = training.method.predict(next(iter(training.test_loader))[0])
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}[amp]
    assert all(z.dtype == half and z.is_cuda for z in logits.values())
    assert all(p.is_cuda and p.dtype == torch.float32 for p in training.trainer.model.parameters())


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_streamed_batches(prepare):
    """--cache off: two copies to the device, of uint8 images and of labels; the rest normalises."""
    streamed = prepare("OKDDip", "--cache", "off", "--num_workers", "0", batches=(2, 1))
    assert isinstance(streamed.train_loader, data_loader.Streamed)
    for images, labels in streamed.watch(streamed.train_loader):
        assert images.is_cuda and labels.is_cuda and images.is_contiguous(memory_format=torch.channels_last)
    assert streamed.loading == [6, 6]


def test_what_evaluate_py_measures(prepare):
    measured = prepare("ONE", batches=(1, 2))
    found = evaluate(measured.method, measured.test_loader, watch=measured.watch, more_sums=calibration_and_class_sums)
    assert len(measured.computing) == 2 and "gaps" in found


@pytest.mark.parametrize(("name", "gpu_id", "index"), [("cuda", 0, 0), ("cuda:1", 0, 1), ("cuda", 1, 1)])
def test_the_gpu_of_a_run_is_the_current_one(name, gpu_id, index):
    """Otherwise pinned memory and libraries open GPU 0, whatever GPU the run has."""
    with fake_cuda() as gpu:
        assert gpu.current is None
        assert pick_device(name, gpu_id) == gpu.current == torch.device("cuda", index)


def test_the_loss_is_compiled_into_cuda_graphs(prepare, monkeypatch):
    """They read the weight w(e) from the GPU."""
    asked, weights, step = [], [], Stepper.step
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(options) or function)
    monkeypatch.setattr(Stepper, "step", lambda self, *batch: weights.append(batch[2]) or step(self, *batch))
    prepare("OKDDip", "--compile", batches=(1, 1)).epoch()
    assert asked == [{"mode": "reduce-overhead", "dynamic": False}] and all(weight.is_cuda for weight in weights)


def test_a_checkpoint_is_of_the_cpu_and_goes_back_to_the_gpu(prepare):
    """Weights, momentum, the scale of fp16, the sums of a begun epoch: a step after it meets no tensor of the CPU.

    A file with tensors of the GPU would open only on a machine with one. The stepper's own dictionary stays.
    """
    training = prepare("OKDDip", "--amp", "fp16")
    images, labels = next(iter(training.train_loader))
    training.trainer.step(images, labels, 0.5)
    state = training.trainer.state_dict() | {"random": [{"cuda": labels}]}
    saved = on_cpu(state)
    assert {t.device.type for t in tree_leaves(saved) if isinstance(t, torch.Tensor)} == {"cpu"}
    assert all(t.is_cuda for t in state["state_dict"].values()) and saved["terms"] == state["terms"]
    assert saved["state_dict"]._metadata == state["state_dict"]._metadata
    training.trainer.load_state_dict(saved)
    with training.gpu.watch():
        training.trainer.step(images, labels, 0.5)
    assert all(s["momentum_buffer"].is_cuda for s in training.trainer.optimizer.state.values())
    assert all(value.is_cuda for value in training.trainer.sums.sums.values())


def test_pixels_are_divided_not_multiplied():
    """PyTorch's GPU kernel computes x / 255 as x * (1 / 255) if 255 is a number, and 126 of 256 levels differ."""
    with fake_cuda() as gpu:
        normalise = data_loader.Normalise((0.5,) * 3, (0.5,) * 3, torch.device("cuda"))
        with gpu.watch() as kernels:
            normalise(torch.zeros(2, 32, 32, 3, dtype=torch.uint8, device="cuda"))
    assert kernels["aten::div_.Tensor"] == 2 and "aten::div_.Tensor, number" not in kernels


# --- the fake device itself -----------------------------------------------------------------------------------------


WAITS = {"if": lambda x: 1 if x[0] > 0 else 0, "tolist": lambda x: x.tolist(), "cpu": lambda x: x.cpu(),
         "copy_": lambda x: torch.empty(3).copy_(x), "list as an index": lambda x: x[[0, 2]],
         "numbers": lambda x: torch.tensor([1, 2, 3], device="cuda"),
         "to the GPU": lambda x: torch.ones(3).to(x.device), "copy_ to the GPU": lambda x: x.copy_(torch.ones(3))}
MIXTURES = {"sum": lambda x: x + torch.ones(3), "index of the CPU": lambda x: x[torch.tensor([0, 1])],
            "mask": lambda x: x.masked_fill(torch.ones(3, dtype=torch.bool), 0),
            "index of the GPU": lambda x: torch.ones(3)[x.long()]}


@pytest.mark.parametrize("fault", [*WAITS, *MIXTURES])
def test_a_fault_is_found(fault):
    """The host waits for the GPU, or tensors are on two devices."""
    with fake_cuda() as gpu:
        x = torch.randn(3, device="cuda")
        with pytest.raises(HostWaits if fault in WAITS else (AssertionError, RuntimeError)), gpu.watch():
            (WAITS | MIXTURES)[fault](x)


def test_kernels():
    """Views, allocations and what happens on the CPU are none; a CPU tensor without dimensions is a number."""
    with fake_cuda() as gpu, gpu.watch() as kernels:
        x = torch.randn(3, 4, device="cuda")
        y = (x[1:] * torch.tensor(2.0)).flatten()
        assert (torch.randn(3) + 1).sum().device.type == "cpu" and y.shape == torch.empty(8, device="cuda").shape
    assert kernels == {"aten::randn": 1, "aten::mul.Tensor, number": 1}


@pytest.mark.parametrize("name", ["OKDDip", "CL-ILR", "OKDPH-hybrid_gradient"])
def test_its_backward_pass_is_pytorchs(name, monkeypatch, tmp_path):
    """On the CPU, where both run: the same bits. Two of these have a backward pass of their own."""
    prepared = Prepared(monkeypatch, name, "--device", "cpu", "--save_dir", str(tmp_path), images=(8, 8))
    method, gradients, (images, labels) = prepared.method, [], next(iter(prepared.train_loader))
    for compute in (torch.Tensor.backward, backward):
        compute(method.loss(method.model, images, labels, 0.5)[0].total)
        gradients.append([p.grad for p in method.model.parameters() if p.requires_grad])
        method.model.zero_grad()
    assert all(a.equal(b) for a, b in zip(*gradients, strict=True))
