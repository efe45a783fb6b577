"""A training step, and whole trainings by the scripts themselves. tests/training/test_resume.py stops them."""

import json
import re
import signal

import pytest
import torch
from image_data import same_batches
from processes import load
from slow import count_correct

import data_loader
import train
from benchmarks import compare
from losses import Terms
from runtime.errors import UserError
from training import loop
from training.checkpoint import Checkpoints
from training.loop import Stepper, default_milestones, make_optimizer
from training.method import Method
from training.records import Records

CPU = torch.device("cpu")


def make(name="baseline", **flags):
    return compare.method(name, 10, model="resnet8", **flags)


def random_batch(n=8):
    return torch.randn(n, 3, 32, 32), torch.randint(10, (n,))


# --- optimizer and schedule


@pytest.mark.parametrize(("num_epochs", "milestones"), [(300, [150, 225]), (5, [3, 4]), (1, [1, 1])])
def test_default_milestones(num_epochs, milestones):
    assert default_milestones(num_epochs) == milestones


def test_adamw_decays_by_its_flag():
    """Without a gradient, p <- p (1 - lr wd)."""
    model = torch.nn.Linear(1, 1)
    optimizer, before = make_optimizer("adamw", model, 0.1, 0.5), model.weight.item()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert model.weight.item() == pytest.approx(0.95 * before)
    assert type(Stepper(make(), 0.1, 0, [9], CPU, optimizer="adamw").optimizer) is torch.optim.AdamW


def test_sgd_is_nesterov_with_decay_on_everything():
    """Against the update of Sutskever et al. as PyTorch states it: g += wd p; v = 0.9 v + g; p -= lr (g + 0.9 v)."""
    model = torch.nn.BatchNorm1d(3).double()
    optimizer = make_optimizer("sgd", model, 0.1, 0.01)
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


# --- a step and its state


def test_the_means_of_an_epoch_weigh_images_not_batches():
    """Batches of 6 and 2 images: terms and correct answers are those of each step, times its images, divided by 8."""
    torch.manual_seed(0)
    method = make("OKDDip", num_branches=3)
    stepper = Stepper(method, 0.1, 5e-4, [10], CPU)
    terms_of_all, correct = dict.fromkeys(("total", "true", "group"), 0.0), torch.zeros(4, 2)
    for n in (6, 2):
        images, labels = random_batch(n)
        with torch.no_grad():
            terms, z = method.loss(stepper.model, images, labels, 0.5)
        terms_of_all = {k: v + n / 8 * terms[k].item() for k, v in terms_of_all.items()}
        correct += torch.tensor([[count_correct(z[output].tolist(), labels.tolist(), k) for k in (1, 5)]
                                 for output in method.outputs])
        stepper.step(images, labels, 0.5)
    means = stepper.means()
    assert means["terms"] == pytest.approx(terms_of_all, rel=1e-5) and means["correct"] == (correct / 8).tolist()


def test_an_epoch_that_was_resumed_after_its_last_step_ends_without_a_warning(recwarn):
    Stepper(make(), 0.1, 5e-4, [1], CPU).next_epoch()
    assert not recwarn.list


# --- speed and precision


def test_half_precision_learns_the_same():
    losses = []
    for amp in ("off", "bf16"):
        torch.manual_seed(0)
        stepper = Stepper(make(), 0.01, 5e-4, [10], CPU, amp)
        for _ in range(2):
            stepper.step(*random_batch(), 0.5)
        losses.append(stepper.means()["terms"]["total"])
        assert all(p.dtype == torch.float32 for p in stepper.model.parameters())
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)


# --- divergence


@pytest.mark.parametrize(("terms", "named"), [
    (["true", "total"], "true"), (["true", "group", "total"], "true and group"), (["total"], "total")])
def test_divergence_names_epoch_steps_rate_and_terms(terms, named):
    """The third step's loss is infinite. The total is named only if it alone is not finite."""
    method, steps = make(), []
    loss = method.loss

    def third_is_infinite(*batch):
        found, logits = loss(*batch)
        steps.append(1)
        return (found if len(steps) < 3 else Terms(found | {name: found[name] + torch.inf for name in terms})), logits

    method.loss = third_is_infinite
    stepper = Stepper(method, 0.1, 5e-4, [10], CPU)
    stepper.step(*random_batch(2), 1.0)
    stepper.means()
    for _ in range(3):
        stepper.step(*random_batch(2), 1.0)
    for read in (stepper.means, stepper.state_dict):  # so nothing of it gets into a checkpoint
        with pytest.raises(UserError, match=f"the {named} loss is not finite, epoch 1, between steps 2 and 4, "
                                            "learning rate 0.1"):
            read()


@pytest.mark.parametrize(("steps", "value"), [(0, torch.inf), (1, torch.nan)])
def test_divergence_after_an_epoch_is_of_that_epoch(steps, value):
    """Until the next one has begun. A weight that is not finite is not saved."""
    stepper = Stepper(make(), 0.1, 5e-4, [10], CPU)
    stepper.step(*random_batch(2), 1.0)
    stepper.next_epoch()
    for _ in range(steps):
        stepper.step(*random_batch(2), 1.0)
    stepper.model.head.fc.bias.data[3] = value
    with pytest.raises(UserError, match=f"a weight is not finite, epoch {1 + steps}, between the last checkpoint"):
        stepper.state_dict()


def test_smoothed_labels_are_pytorchs():
    stepper = Stepper(make(), 0.1, 0, [9], CPU, label_smoothing=0.1, num_classes=10)
    images, labels = random_batch()
    with torch.no_grad():
        z = stepper.model(images)
    stepper.step(images, labels, 1.0)
    expected = torch.nn.functional.cross_entropy(z, labels, label_smoothing=0.1).item()
    assert stepper.means()["terms"]["true"] == pytest.approx(expected, rel=1e-5)


# --- whole trainings


def test_the_course_of_a_training(baseline, monkeypatch):
    """What is shown, measured, saved and recorded. The first epoch is taken for the best one.

    It, each second one and the last are saved, and each second step. The method's advice is about the last epoch.
    Every two steps a line of the log has loss, accuracy, speed and time left.
    """
    saved, closed, course, shown, save, step, evaluated = [], [], [], [], Checkpoints.save, Stepper.step, loop.evaluate

    def note_save(self, best=False):
        saved.append((len(self.history), self.stepper.sums.steps, best))
        save(self, best)

    def note_step(self, images, labels, *rest):
        course.append(self.model.training)
        shown.append((images.clone(), labels))
        step(self, images, labels, *rest)

    monkeypatch.setattr(Checkpoints, "save", note_save)
    monkeypatch.setattr(Checkpoints, "best", lambda self: self.history[0])
    monkeypatch.setattr(Stepper, "step", note_step)
    monkeypatch.setattr(loop, "evaluate", lambda method, images, phase, *rest: (
        course.append((phase, images.num_images)), evaluated(method, images, phase, *rest))[1])
    monkeypatch.setattr(Method, "after_epoch", lambda self, held_out, *rest: course.append(held_out.num_images))
    monkeypatch.setattr(Method, "advice", lambda self, last: f"stop after epoch {last['epoch']}")
    monkeypatch.setattr(data_loader.Loader, "close", lambda self: closed.append(self.num_images))
    argv, folder = baseline
    train.main([*argv, "3", "--val_size", "4", "--save_steps", "2", "--save_every", "2", "--log_every", "2",
                "--seed", "3"])
    assert course == [True, True, True, 4, ("val", 4), ("test", 24)] * 3 and sorted(closed) == [4, 20, 24]
    assert saved == [(0, 2, False), (1, 0, True), (1, 1, False), (1, 3, False), (2, 0, False), (2, 2, False),
                     (3, 0, False)]
    records, summary = load(folder)["history"], json.loads((folder / "summary.json").read_text())
    assert summary == {"chosen_by": "val_accTop1", "last": records[-1], "best": records[0]}
    log = (folder / "train.log").read_text()
    assert "warning: stop after epoch 3\n" in log and "4 held-out images choose the best epoch\n" in log
    progress = r"epoch \d/3  step 2/3  loss \d\.\d{4}  top-1 \d+\.\d\d %  \d+ images/s  \d+ s left in this epoch\n"
    assert len(re.findall(progress, log)) == log.count("  step ") == 3
    for epoch, record in enumerate(records, 1):
        assert (record["epoch"], record["weight"]) == (epoch, 1.0)
        assert record["train_loss"] == record["train_loss_true"] > 0 == record["train_loss_group"]
        assert {"train_accTop1", "val_accTop1", "test_accTop1", "val_loss", "test_loss"} <= record.keys()
        assert 20 <= record["images_per_second"] * record["seconds"] and record["images_per_second"] < 1e5
    loader, _ = data_loader.dataloader("folder", 8, 0, argv[argv.index("--data_dir") + 1], seed=3, val_size=4)
    for epoch in range(3):
        loader.set_epoch(epoch)
        assert same_batches(shown[3 * epoch:3 * epoch + 3], loader)


def test_a_method_is_told_the_number_of_each_step_before_and_after_it(baseline, monkeypatch):
    """Of the whole training and of the epoch, from 1. A stop within the second epoch does not change the numbers."""
    told = []

    def tell(moment):
        def note(self, step, of_epoch):
            told.append((moment, step, of_epoch, next(self.model.parameters()).sum().item()))
            if (moment, step) == ("after", 5) and len(told) == 10:
                signal.raise_signal(signal.SIGTERM)
        return note

    for moment in ("before", "after"):
        monkeypatch.setattr(Method, f"{moment}_step", tell(moment))
    argv, _ = baseline
    with pytest.raises(SystemExit):
        train.main([*argv, "2"])
    train.main([*argv, "2", "--resume", "auto"])
    assert [note[:3] for note in told] == [(moment, step, (step - 1) % 3 + 1)
                                           for step in range(1, 7) for moment in ("before", "after")]
    weights = [weight for *_, weight in told]
    assert weights[1:-1:2] == weights[2::2] and len(set(weights)) == 7


def test_a_signal_at_the_very_end_is_told_by_the_exit_code(baseline, monkeypatch):
    """The training is complete, and the caller learns of the signal."""
    finish, (argv, folder) = Records.finish, baseline
    monkeypatch.setattr(Records, "finish", lambda *args: (finish(*args), signal.raise_signal(signal.SIGTERM)))
    with pytest.raises(SystemExit) as end:
        train.main([*argv, "1"])
    assert end.value.code == 128 + signal.SIGTERM
    assert json.loads((folder / "summary.json").read_text())["last"]["epoch"] == 1
    assert "stopped by signal" not in (folder / "train.log").read_text()


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(baseline, monkeypatch):
    """At once, and later: then the last checkpoint is that of the epoch before."""
    argv, folder = baseline
    with pytest.raises(UserError, match="diverged"):
        train.main([*argv, "2", "--lr", "1e30"])
    assert not (folder / "last.pth").exists() and json.loads((folder / "parameters.json").read_text())["lr"] == 1e30
    step = Stepper.step
    monkeypatch.setattr(Stepper, "step", lambda self, images, *rest: step(
        self, images * (torch.nan if self.scheduler.last_epoch == 1 else 1), *rest))
    with pytest.raises(UserError, match="the training diverged.*epoch 2, between steps 1 and 3"):
        train.main([*argv, "2", "--overwrite"])
    good = load(folder)
    assert len(good["history"]) == 1 and all(weight.isfinite().all() for weight in good["state_dict"].values())


def test_an_epoch_that_older_code_began_without_a_term_is_not_continued():
    """Older code did not sum the teacher's term of OKDDip: the sums of such an epoch cannot be completed."""
    stepper, (images, labels) = Stepper(make(), 0.1, 5e-4, [10], CPU), random_batch()
    stepper.step(images, labels, 1.0)
    stepper.terms = [*stepper.terms, "teacher"]
    with pytest.raises(UserError, match="begun by older code, which did not record all terms"):
        stepper.step(images, labels, 1.0)
