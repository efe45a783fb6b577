import copy
from argparse import Namespace
from contextlib import nullcontext

import pytest
import torch
from processes import group
from slow import count_correct

import methods
import models
from losses import Terms, distillation, true_loss
from runtime.checkpoints import digest
from runtime.errors import UserError
from training.step import Trainer, default_milestones, sgd

CPU = torch.device("cpu")


def make(name="baseline", **flags):
    """A method on resnet8 with 10 classes."""
    kind, defaults = methods.find(name)
    return kind(Namespace(**vars(defaults) | {"model": "resnet8"} | flags), 10)


def random_batch(n=8):
    return torch.randn(n, 3, 32, 32), torch.randint(10, (n,))


# --- optimizer and schedule


def test_schedule():
    """lr 0.1, a tenth at zero-based epoch 150, a hundredth at 225."""
    optimizer, scheduler = sgd(torch.nn.Linear(2, 2), 0.1, 5e-4, [150, 225])
    used = []
    for _ in range(300):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [used[e] for e in (0, 149, 150, 224, 225, 299)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(("num_epochs", "milestones"), [(300, [150, 225]), (20, [10, 15]), (5, [3, 4]), (1, [1, 1])])
def test_default_milestones(num_epochs, milestones):
    assert default_milestones(num_epochs) == milestones


def test_sgd_is_nesterov_with_decay_on_everything():
    """Against the update of Sutskever et al. as PyTorch states it: g += wd p; v = 0.9 v + g; p -= lr (g + 0.9 v)."""
    model = torch.nn.BatchNorm1d(3).double()
    optimizer, _ = sgd(model, 0.1, 0.01, [10])
    p, v = [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]
    for step in range(3):
        gradient = [1.0, -2.0, 0.5 * step]
        model.weight.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        for i in range(3):
            g = gradient[i] + 0.01 * p[i]
            v[i] = 0.9 * v[i] + g
            p[i] -= 0.1 * (g + 0.9 * v[i])
    assert model.weight.tolist() == pytest.approx(p, rel=1e-12)


def test_the_means_of_an_epoch_weigh_images_not_batches():
    """Batches of 6 and 2 images: terms and correct answers are those of each step, times its images, divided by 8."""
    torch.manual_seed(0)
    method = make("OKDDip", num_branches=3)
    trainer = Trainer(method, 0.1, 5e-4, [10], CPU)
    expected = {"terms": dict.fromkeys(("total", "true", "group"), 0.0), "hits": torch.zeros(4, 2)}
    for n in (6, 2):
        images, labels = random_batch(n)
        with torch.no_grad():
            terms, z = method.loss(trainer.model, images, labels, 0.5)
        expected["terms"] = {k: v + n / 8 * terms[k].item() for k, v in expected["terms"].items()}
        expected["hits"] += torch.tensor([[count_correct(z[output].tolist(), labels.tolist(), k) for k in (1, 5)]
                                          for output in method.outputs])
        trainer.step(images, labels, 0.5)
    means = trainer.means()
    assert means["terms"] == pytest.approx(expected["terms"], rel=1e-5)
    assert means["hits"] == (expected["hits"] / 8).tolist()


def change(*share, wd=0.0):
    """How one step changes the weights: [all of them]."""
    torch.manual_seed(0)
    trainer = Trainer(make(), 0.1, wd, [10], CPU)
    before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    trainer.step(*random_batch(), 1.0, *share)
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]) - before


def test_a_share_weighs_the_gradient():
    """A process with fewer images than an equal part has a smaller step. 1.9 lr g: the first step of Nesterov's."""
    assert change(0.5).allclose(0.5 * change(1.0), rtol=1e-3, atol=1e-7) and change(1.0).abs().max() > 1e-3
    assert change().equal(change(1.0))


def test_batches_are_counted_once():
    trainer = Trainer(make(), 0.1, 5e-4, [10], CPU)

    def counted():
        return {int(v) for k, v in trainer.state_dict()["state_dict"].items() if k.endswith("num_batches_tracked")}

    for steps in (1, 2):
        trainer.step(*random_batch(2), 1.0)
        assert counted() == counted() == {steps}


def test_the_state_continues_a_training():
    """Two steps in one go, or one, the state, and the other: the same weights, momentum, sums, schedule."""
    torch.manual_seed(0)
    first, second = random_batch(), random_batch()
    method = make()
    weights = {name: value.clone() for name, value in method.model.state_dict().items()}
    trainers = []
    for stop in (False, True):
        method.model.load_state_dict(weights)
        trainer = Trainer(method, 0.1, 5e-4, [1], CPU)
        trainer.next_epoch()
        trainer.step(*first, 1.0)
        if stop:
            state = copy.deepcopy(trainer.state_dict())
            trainer = Trainer(make(), 0.5, 5e-4, [10], CPU)
            trainer.load_state_dict(state)
            assert trainer.checked_steps == trainer.sums.steps == 1
        trainer.step(*second, 1.0)
        trainers.append((copy.deepcopy(trainer.state_dict()), trainer.means(), trainer.lr))
    (whole, means, lr), (continued, means_again, lr_again) = trainers
    assert lr == lr_again == pytest.approx(0.01) and means == means_again
    for part in (whole, continued):
        del part["tally"]["seconds"]
    assert digest(continued) == digest(whole)
    assert whole.keys() == {"state_dict", "optimizer", "scheduler", "scaler", "tally", "terms"}


def test_a_checkpoint_that_does_not_name_the_terms():
    """Older code recorded three. Sums of an epoch go on if the loss has these, and are refused if it has more."""
    for name, refused in (("OKDDip", False), ("OKDDip+KD", True)):
        trainer = Trainer(make(name, num_branches=3), 0.1, 5e-4, [10], CPU)
        trainer.step(*random_batch(4), 1.0)
        state = copy.deepcopy(trainer.state_dict())
        del state["terms"]
        if refused:
            trainer.method.teacher = lambda images: torch.ones(len(images), 10)
        trainer.load_state_dict(state)
        with pytest.raises(UserError, match="begun by older code") if refused else nullcontext():
            trainer.step(*random_batch(4), 1.0)
            assert list(trainer.means()["terms"]) == ["total", "true", "group"]


def test_a_new_epoch_has_empty_sums():
    trainer = Trainer(make(), 0.1, 5e-4, [1], CPU)
    trainer.step(*random_batch(2), 1.0)
    trainer.means()
    trainer.next_epoch()
    assert (trainer.sums.steps, trainer.sums.sums, trainer.checked_steps) == (0, {}, 0)
    assert trainer.lr == pytest.approx(0.01)


def test_an_epoch_that_was_resumed_after_its_last_step_ends_without_a_warning(recwarn):
    """PyTorch takes a schedule that moves before a step for a mistake."""
    Trainer(make(), 0.1, 5e-4, [1], CPU).next_epoch()
    assert not recwarn.list


def test_networks_are_in_channels_last():
    method = make("KD")
    method.teacher = models.create_model("resnet14", 10)
    Trainer(method, 0.1, 5e-4, [10], CPU)
    for network in (method.model, method.teacher):
        for weight in (network.trunk.layer2[0].conv1.weight, network.head.layer3[0].conv2.weight):
            assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_only_fp16_scales(amp):
    assert Trainer(make(), 0.1, 5e-4, [10], CPU, amp).scaler.is_enabled() == (amp == "fp16")


# --- speed and precision


@pytest.mark.filterwarnings("ignore:.*profiler.*")
def test_no_step_reads_a_device_value():
    """No operation of a step needs a number on the host: aten::_local_scalar_dense is what waits for a GPU."""
    trainer = Trainer(make("OKDDip"), 0.1, 5e-4, [10], CPU)
    images, labels = random_batch(4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        trainer.step(images, labels, 0.5)
    seen = {event.key for event in profile.key_averages()}
    assert "aten::convolution" in seen and "aten::_local_scalar_dense" not in seen
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        trainer.sums.sums["terms"][0].item()
    assert "aten::_local_scalar_dense" in {event.key for event in profile.key_averages()}


def trained(amp="off", compiled=False, steps=3):
    """Losses of a few steps of a small network on the same batch, whether it changed, and its trainer."""
    torch.manual_seed(0)
    images, labels = random_batch()
    method = make()
    trainer = Trainer(method, 0.01, 5e-4, [10], CPU, amp, compiled)
    before, losses = method.model.head.fc.weight.detach().clone(), []
    for _ in range(steps):
        trainer.sums.reset()
        trainer.step(images, labels, 0.5)
        losses.append(trainer.sums.means()["terms"][0])
    return losses, not method.model.head.fc.weight.equal(before), trainer


def test_half_precision_learns_the_same():
    full, _, _ = trained()
    half, changed, trainer = trained("bf16")
    assert changed and half == pytest.approx(full, rel=0.02) and half != full
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_fp16_scales_its_gradients():
    """The scale starts at 65536 and is halved if gradients overflow; the steps that are taken learn the same."""
    full, _, _ = trained(steps=2)
    half, _, trainer = trained("fp16", steps=2)
    assert trainer.scaler.is_enabled() and trainer.scaler.get_scale() > 0
    assert half[0] == pytest.approx(full[0], rel=0.02)
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 128.0})
    before = trainer.model.head.fc.weight.detach().clone()
    trainer.step(*random_batch(), 0.5)
    assert not trainer.model.head.fc.weight.equal(before)


def test_a_first_step_that_fp16_skips_leaves_no_trace():
    """Its gradients overflow. Momentum that the skipped step left uninitialised would get into the weights."""
    _, _, trainer = trained("fp16", steps=0)
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 1e38})
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.step(*random_batch(), 0.5)
    assert all(p.equal(b) for p, b in zip(trainer.model.parameters(), before, strict=True)), "the step was not skipped"
    assert not any(s["momentum_buffer"].any() for s in trainer.optimizer.state.values())


def test_losses_stay_in_float32_under_autocast():
    z, t = torch.randn(4, 3, 10), torch.randn(4, 3, 10)
    labels = torch.tensor([1, 2, 3, 4])
    with torch.autocast("cpu", torch.bfloat16):
        terms = true_loss(z.bfloat16(), labels), distillation(t.bfloat16(), z.bfloat16(), 3.0)
    expected = true_loss(z.bfloat16().float(), labels), distillation(t.bfloat16().float(), z.bfloat16().float(), 3.0)
    assert [x.dtype for x in terms] == [torch.float32] * 2 and terms == expected


def test_the_loss_is_compiled_for_one_shape(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append((function, options)))
    method = make()
    assert Trainer(method, 0.1, 5e-4, [10], CPU).loss == method.loss and asked == []
    Trainer(method, 0.1, 5e-4, [10], CPU, compiled=True)
    assert asked == [(method.loss, {"mode": "default", "dynamic": False})]


def test_compiled_learns_the_same():
    full, _, _ = trained()
    compiled, changed, _ = trained(compiled=True)
    assert changed and compiled == pytest.approx(full, rel=1e-3)


# --- divergence


def diverging(term):
    """A trainer whose ``term`` is infinite in its third step."""
    method, steps = make(), []
    loss = method.loss

    def third_is_infinite(*batch):
        terms, logits = loss(*batch)
        steps.append(1)
        if len(steps) == 3:
            terms |= {name: terms[name] + float("inf") for name in (term, "total")}
        return terms, logits

    method.loss = third_is_infinite
    return Trainer(method, 0.1, 5e-4, [10], CPU)


@pytest.mark.parametrize("term", ["true", "group"])
def test_divergence_names_epoch_steps_rate_and_term(term):
    trainer = diverging(term)
    images, labels = random_batch(4)
    trainer.step(images, labels, 1.0)
    trainer.means()
    for _ in range(3):
        trainer.step(images, labels, 1.0)
    with pytest.raises(UserError, match=f"the {term} loss is not finite, epoch 1, between steps 2 and 4, "
                                        "learning rate 0.1"):
        trainer.means()
    with pytest.raises(UserError, match="not finite"):
        trainer.state_dict()  # so nothing of it gets into a checkpoint


@pytest.mark.parametrize(("terms", "named"), [
    (["true", "total"], "true"), (["true", "group", "total"], "true and group"), (["total"], "total"),
    (["teacher", "total"], "teacher")])
def test_a_first_step_that_diverges_is_step_1(terms, named):
    """Each term that is not finite is named; the total only if it alone is not."""
    method = make()
    loss = method.loss
    nan = torch.tensor(float("nan"), requires_grad=True)
    method.loss = lambda *batch: (Terms(loss(*batch)[0] | dict.fromkeys(terms, nan)), loss(*batch)[1])
    trainer = Trainer(method, 0.1, 5e-4, [10], CPU)
    trainer.step(*random_batch(2), 1.0)
    with pytest.raises(UserError, match=f"the {named} loss is not finite, epoch 1, between steps 1 and 1,"):
        trainer.means()


@pytest.mark.parametrize("steps", [0, 1])
def test_divergence_after_an_epoch_is_of_that_epoch(steps):
    """Until the next one has begun."""
    trainer = Trainer(make(), 0.1, 5e-4, [10], CPU)
    trainer.step(*random_batch(2), 1.0)
    trainer.next_epoch()
    for _ in range(steps):
        trainer.step(*random_batch(2), 1.0)
    trainer.model.head.fc.bias.data[3] = float("inf")
    with pytest.raises(UserError, match=f"a weight is not finite, epoch {1 + steps}, between the last checkpoint"):
        trainer.state_dict()


@pytest.mark.parametrize("rank", [0, 1])
def test_divergence_is_reported_once(rank, monkeypatch):
    trainer = Trainer(make(), 0.1, 5e-4, [10], CPU)
    for name, value in group(2)[rank].items():
        monkeypatch.setenv(name, value)
    assert trainer.diverged("a weight", "a and b").already_reported == (rank == 1)


def test_weights_that_are_not_numbers_are_not_saved():
    trainer = Trainer(make(), 0.1, 5e-4, [10], CPU)
    with torch.no_grad():
        trainer.model.head.fc.bias[3] = float("nan")
    with pytest.raises(UserError, match="a weight is not finite"):
        trainer.state_dict()
