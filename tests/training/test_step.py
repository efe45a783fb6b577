import json
from types import SimpleNamespace

import engine
import pytest
import torch


def brute_force_hits(z, y, k):
    """How many classes are ahead of the label's, a lower class of equal score among them, counted one by one; fewer
    than k is a hit."""
    return sum(sum(other > row[label] or (other == row[label] and c < label) for c, other in enumerate(row)) < k
               for row, label in zip(z, y, strict=True))


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_hits(classes):
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 4, classes), torch.randint(classes, (50,))
    found = engine.hits(logits, labels)
    for r in range(4):
        expected = [brute_force_hits(logits[:, r].tolist(), labels.tolist(), k) for k in (1, 5)]
        assert found[r].tolist() == expected
        assert found[r, 0] == (logits[:, r].argmax(-1) == labels).sum()


def test_of_equal_scores_the_lower_class_is_ahead():
    """As argmax and a stable sort have it: a network that says nothing is right by chance, not always."""
    labels = torch.arange(10)
    assert engine.hits(torch.zeros(10, 1, 10), labels).tolist() == [[1, 5]]
    torch.manual_seed(0)
    z, labels = torch.randint(4, (200, 1, 10)).bfloat16(), torch.randint(10, (200,))
    order = z.squeeze(1).float().sort(dim=-1, descending=True, stable=True).indices
    expected = [[(order[:, :k] == labels.unsqueeze(1)).sum().item() for k in (1, 5)]]
    assert engine.hits(z, labels).tolist() == expected


def test_nan_is_a_miss():
    logits = torch.full((4, 1, 10), float("nan"))
    assert engine.hits(logits, torch.tensor([0, 1, 2, 3])).tolist() == [[0, 0]]


@pytest.mark.parametrize("m", [2, 3, 8])
def test_distance(m):
    torch.manual_seed(0)
    p = torch.softmax(torch.randn(6, m, 10, dtype=torch.float64), -1)
    total = 0.0
    for image in p.tolist():
        pairs = [sum((x - y) ** 2 for x, y in zip(image[i], image[j], strict=True)) ** 0.5
                 for i in range(m) for j in range(i)]
        total += sum(pairs) / len(pairs)
    assert engine.distance(p).item() == pytest.approx(total, rel=1e-12)


class Fixed:
    """A loader of 300 images in batches of 128, 128 and 44."""

    device = torch.device("cpu")

    def __init__(self):
        torch.manual_seed(0)
        self.logits, self.labels = torch.randn(300, 4, 10), torch.randint(10, (300,))

    def __iter__(self):
        return zip(self.logits.split(128), self.labels.split(128), strict=True)


def test_evaluation_weighs_images_not_batches():
    loader = Fixed()
    loader.logits[-1, :, :] = 0
    loader.logits[-44:, 0] = 10 * torch.nn.functional.one_hot(loader.labels[-44:], 10)  # the short batch is all right
    method = engine.Method(dict.fromkeys(["stu0", "stu1", "stu_", ""]), None,
                           lambda model, images: (images, {"extra": images[:, 0]}), best="stu_test_accTop1")
    found = engine.evaluate(method, torch.nn.Identity(), loader)
    for r, row in enumerate(method.rows):
        z = loader.logits[:, r]
        for k in (1, 5):
            exact = 100 * brute_force_hits(z.tolist(), loader.labels.tolist(), k) / 300
            assert found[f"{row}test_accTop{k}"] == pytest.approx(exact, rel=1e-14)
        cross_entropy = torch.nn.functional.cross_entropy(z.double(), loader.labels).item()
        assert found[f"{row}test_loss"] == pytest.approx(cross_entropy, rel=1e-5)
    for k in (1, 5):
        assert found[f"mean_test_accTop{k}"] == (found[f"stu0test_accTop{k}"] + found[f"stu1test_accTop{k}"]) / 2
    assert found["mean_test_accTop1"] != found["mean_test_accTop5"]
    p = torch.softmax(loader.logits.double(), -1)
    assert found["dist"] == pytest.approx((p[:, 0] - p[:, 1]).norm(dim=-1).mean().item(), rel=1e-5)
    assert found["extra"] == pytest.approx(loader.logits[:, 0].double().mean(0).tolist(), rel=1e-5)


def test_schedule():
    """lr 0.1, a tenth at zero-based epoch 150, a hundredth at 225."""
    optimizer, scheduler = engine.sgd(torch.nn.Linear(2, 2), 0.1, 5e-4, [150, 225])
    used = []
    for _ in range(300):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [used[e] for e in (0, 149, 150, 224, 225, 299)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_sgd_is_nesterov_with_decay_on_everything():
    """Against the update of Sutskever et al. as PyTorch states it: g += wd p; v = 0.9 v + g; p -= lr (g + 0.9 v)."""
    model = torch.nn.BatchNorm1d(3).double()
    optimizer, _ = engine.sgd(model, 0.1, 0.01, [10])
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


@pytest.mark.filterwarnings("ignore:.*profiler.*")
def test_no_step_reads_a_device_value():
    """Nothing in a step asks for a number: aten::_local_scalar_dense is what waits for a GPU."""
    import models
    from losses import okddip_loss

    def objective(model, images, labels, weight):
        peers, targets, leader = model(images)
        return okddip_loss(peers, targets, leader, labels, weight), torch.cat([peers, leader.unsqueeze(1)], 1)

    method = engine.Method(dict.fromkeys(["stu0", "stu1", "stu2", "stu_"]), objective, None, best="stu_test_accTop1")
    trainer = engine.Trainer(models.OKDDip("resnet8", 10), method, 0.1, 5e-4, [10], torch.device("cpu"))
    images, labels = torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        trainer.step(images, labels, 0.5)
    seen = {event.key for event in profile.key_averages()}
    assert "aten::convolution" in seen and "aten::_local_scalar_dense" not in seen
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        trainer.tally.sums["terms"][0].item()
    assert "aten::_local_scalar_dense" in {event.key for event in profile.key_averages()}


def test_figures_are_json():
    means = {"hits": [[0.5, 1.0], [0.25, 0.75]], "terms": [1.0, 1.0, 0.0]}
    named = engine.figures(means, ["stu0", ""], "train")
    assert json.loads(json.dumps(named)) == {
        "stu0train_accTop1": 50, "stu0train_accTop5": 100, "train_accTop1": 25, "train_accTop5": 75,
        "mean_train_accTop1": 50, "mean_train_accTop5": 100}


def test_progress_in_lines(caplog, monkeypatch):
    """Not on a terminal: a line every log_every steps, with loss, accuracy, speed and remaining time."""
    monkeypatch.setattr(engine.sys, "stderr", SimpleNamespace(isatty=lambda: False))
    trainer = SimpleNamespace(tally=engine.Tally(torch.device("cpu")))
    trainer.means = trainer.tally.means
    caplog.set_level("INFO")
    with engine.Progress("epoch 1/2", trainer, steps=5, log_every=2, row=0) as progress:
        for _ in range(5):
            trainer.tally.add(8, terms=torch.tensor([16.0, 8.0, 8.0]), hits=torch.tensor([[4, 8]]))
            progress.update()
    assert len(caplog.messages) == 2
    for word in ("step 2/5", "loss 2.0000", "top-1 50.00 %", "images/s", "s left"):
        assert word in caplog.messages[0]


def trained(amp="off", compiled=False, steps=3):
    """Losses of a few steps of a small network on the same batch, whether it moved, and its trainer."""
    import models
    from losses import individual_loss

    def objective(model, images, labels, weight):
        z = model(images)
        return individual_loss(z, labels), z.unsqueeze(1)

    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    method = engine.Method({"": "network"}, objective, None, best="test_accTop1")
    model = models.create_model("resnet8", 10)
    trainer = engine.Trainer(model, method, 0.01, 5e-4, [10], torch.device("cpu"), amp, compiled)
    before, losses = model.head.fc.weight.detach().clone(), []
    for _ in range(steps):
        trainer.tally.reset()
        trainer.step(images, labels, 0.5)
        losses.append(trainer.tally.means()["terms"][0])
    return losses, not model.head.fc.weight.equal(before), trainer


def test_half_precision_learns_the_same():
    full, _, _ = trained()
    half, moved, trainer = trained("bf16")
    assert moved and half == pytest.approx(full, rel=0.02) and half != full
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_fp16_scales_its_gradients():
    """The scale starts at 65536 and halves where gradients overflow; the steps that are taken learn the same."""
    full, _, _ = trained(steps=2)
    half, _, trainer = trained("fp16", steps=2)
    assert trainer.scaler.is_enabled() and trainer.scaler.get_scale() > 0
    assert half[0] == pytest.approx(full[0], rel=0.02)
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 128.0})
    before = trainer.model.head.fc.weight.detach().clone()
    trainer.step(torch.randn(8, 3, 32, 32), torch.randint(10, (8,)), 0.5)
    assert not trainer.model.head.fc.weight.equal(before)


def test_a_first_step_that_fp16_skips_leaves_no_trace():
    """Its gradients overflow; momentum that the skipped step had left uninitialised would come into the weights."""
    _, _, trainer = trained("fp16", steps=0)
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 1e38})
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.step(torch.randn(8, 3, 32, 32), torch.randint(10, (8,)), 0.5)
    assert all(p.equal(b) for p, b in zip(trainer.model.parameters(), before, strict=True)), "the step was not skipped"
    assert not any(s["momentum_buffer"].any() for s in trainer.optimizer.state.values())


def test_losses_stay_in_float32_under_autocast():
    from losses import distillation, true_loss

    z, t = torch.randn(4, 3, 10), torch.randn(4, 3, 10)
    labels = torch.tensor([1, 2, 3, 4])
    with torch.autocast("cpu", torch.bfloat16):
        terms = true_loss(z.bfloat16(), labels), distillation(t.bfloat16(), z.bfloat16(), 3.0)
    expected = true_loss(z.bfloat16().float(), labels), distillation(t.bfloat16().float(), z.bfloat16().float(), 3.0)
    assert [x.dtype for x in terms] == [torch.float32] * 2 and terms == expected


def test_compiled_learns_the_same():
    full, _, _ = trained()
    compiled, moved, _ = trained(compiled=True)
    assert moved and compiled == pytest.approx(full, rel=1e-3)
