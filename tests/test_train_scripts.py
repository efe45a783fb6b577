"""From the flags to the loss: what each script hands to the epoch loop, against the losses called directly."""

import pytest
import torch

import losses
import models
import train
import train_DML
import train_GL
import train_kd
import train_one
from training import step

X, LABELS, W = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 3, 9]), 0.3
DATA = ["--model", "resnet8", "--dataset", "DIGITS", "--device", "cpu", "--num_epochs", "20"]
HYPER = ["--temperature", "2", "--loss", "CE"]
GROUP = [*HYPER, "--alpha", "0.5", "--num_branches", "3"]


@pytest.fixture
def handed_over(monkeypatch, tmp_path):
    """handed_over(script, flags...) -> the method (its model in evaluation mode) and the run that the script made."""
    def start(script, *flags):
        seen = []
        monkeypatch.setattr(script, "fit", lambda method, train_loader, test_loader, run: seen.extend((method, run)))
        script.main([*DATA, "--save_dir", str(tmp_path), *flags])
        seen[0].model.eval()
        return seen

    return start


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.manual_seed(1)
    network = models.create_model("resnet14", 10)
    torch.save({"state_dict": network.state_dict()}, path)
    return network.eval(), str(path)


def check(method, terms, outputs):
    """The terms of the loss, and the logits of every output in training and in evaluation."""
    found, logits = method.loss(method.model, X, LABELS, W)
    for name, a, b in zip(losses.Terms._fields, found, terms, strict=True):
        assert a.item() == pytest.approx(b.item(), rel=1e-6), name
    assert list(method.outputs) == list(outputs)
    for z in (logits, method.predict(X)[0]):
        assert z.shape == (4, len(outputs), 10)
        for r, (output, expected) in enumerate(outputs.items()):
            assert z[:, r].allclose(expected, atol=1e-6), output


@pytest.mark.parametrize("more", [[], ["--MulStu"], ["--choose_E"]])
def test_okddip(more, handed_over):
    ramp = ["--length", "5", "--start_consistency", "0.1"]
    method, _ = handed_over(train_GL, *GROUP, *ramp, *more)
    assert method.model.network_based == ("--MulStu" in more) and method.model.num_branches == 3
    peers, targets, leader = method.model(X)
    outputs = {"stu_": leader, "stu0": peers[:, 0], "stu1": peers[:, 1], "": peers.mean(1)}
    check(method, losses.okddip_loss(peers, targets, leader, LABELS, W, 2.0, 0.5, "CE"), outputs)
    assert method.predict(X)[1]["attention"].shape == (4, 2, 2)
    assert [method.ramp_up(e, 20) for e in range(20)] == [losses.ramp_up(e, 20, 0.1, 5) for e in range(20)]
    assert method.best == ("" if "--choose_E" in more else "stu_")


@pytest.mark.parametrize("more", [[], ["--MulStu"], ["--aggregation", "others", "--num_branches", "4"]])
def test_okddip_with_detached_targets(more, handed_over):
    """The students' gradients are those of constant targets; W_L and W_E have none."""
    method, run = handed_over(train_GL, *GROUP, *more, "--detach_targets")
    assert run.folder.parent.name.endswith("-detach_targets")
    method.loss(method.model, X, LABELS, W)[0].total.backward()
    found = {name: p.grad for name, p in method.model.named_parameters()}
    assert {name for name, g in found.items() if g is None} == {"aggregation.W_L.weight", "aggregation.W_E.weight"}
    method.model.zero_grad()
    with torch.no_grad():
        constant, taught_leader = method.model(X)[1], method.model(X)[0].mean(1)
    peers, _, leader = method.model(X)
    students = torch.cat([peers, leader.unsqueeze(1)], 1)
    targets = torch.cat([constant, taught_leader.unsqueeze(1)], 1)
    (losses.true_loss(students, LABELS) + 0.5 * W * losses.distillation(targets, students, 2.0, "CE")).backward()
    for name, p in method.model.named_parameters():
        assert found[name] is None or found[name].allclose(p.grad, rtol=1e-4, atol=1e-6), name


def test_okddip_without_leader(handed_over):
    method, _ = handed_over(train_GL, *GROUP, "--no_leader")
    z, targets, _ = method.model(X)
    outputs = {"stu0": z[:, 0], "stu1": z[:, 1], "stu2": z[:, 2], "": z.mean(1)}
    check(method, losses.okddip_loss(z, targets, None, LABELS, W, 2.0, 0.5, "CE"), outputs)
    assert method.best == ""


def test_okddip_with_a_teacher(handed_over, teacher):
    network, path = teacher
    method, _ = handed_over(train_GL, *GROUP, "--T_model", "resnet14", "--T_model_path", path)
    peers, targets, leader = method.model(X)
    terms = losses.okddip_loss(peers, targets, leader, LABELS, W, 2.0, 0.5, "CE", teacher=network(X))
    assert method.loss(method.model, X, LABELS, W)[0].total.item() == pytest.approx(terms.total.item(), rel=1e-5)


def students(z):
    return {**{f"stu{i}": z[:, i] for i in range(z.shape[1])}, "": z.mean(1)}


def test_one(handed_over):
    method, _ = handed_over(train_one, *GROUP, "--length", "5", "--start_consistency", "0.1")
    z, e = method.model(X)
    check(method, losses.one_loss(z, e, LABELS, W, 2.0, 0.5, "CE"), {**students(z), "gate_": e})
    assert [method.ramp_up(e, 20) for e in range(20)] == [losses.ramp_up(e, 20, 0.1, 5) for e in range(20)]
    assert method.best == "mean_"


@pytest.mark.parametrize("more", [[], ["--bpscale"], ["--MulStu"]])
def test_cl(more, handed_over):
    method, _ = handed_over(train_one, *GROUP, "--avg", *more)
    assert method.model.rescale == ("--bpscale" in more) and method.model.network_based == ("--MulStu" in more)
    z, targets = method.model(X)
    check(method, losses.cl_ilr_loss(z, targets, LABELS, W, 2.0, 0.5, "CE"), students(z))


@pytest.mark.parametrize("more", [[], ["--MulStu"]])
def test_individual(more, handed_over):
    method, _ = handed_over(train_one, *GROUP, "--ind", *more)
    assert method.model.network_based == ("--MulStu" in more)
    z = method.model(X)
    check(method, losses.individual_loss(z, LABELS), students(z))


@pytest.mark.parametrize("kind", ["ensemble", "pairwise"])
def test_dml(kind, handed_over):
    method, run = handed_over(train_DML, *HYPER, "--num_branches", "3", "--type", kind)
    assert method.model.network_based
    assert run.folder.parent.name == {"ensemble": "DML", "pairwise": "DML-pairwise"}[kind]
    z = method.model(X)
    check(method, losses.dml_loss(z, LABELS, 2.0, "CE", kind == "pairwise"), students(z))
    assert method.best == "mean_" and method.ramp_up(0, 20) == method.ramp_up(19, 20) == 1


def test_kd(handed_over, teacher):
    network, path = teacher
    flags = ["--T_model", "resnet14", "--T_model_path", path, "--alpha", "0.5"]
    method, run = handed_over(train_kd, *HYPER, *flags)
    z = method.model(X)
    check(method, losses.kd_loss(z, network(X), LABELS, 2.0, 0.5, "CE"), {"": z})
    assert method.best == "" and method.ramp_up(0, 20) == method.ramp_up(19, 20) == 1
    answer = method.teacher(X)
    assert answer.equal(method.teacher(X)) and answer.allclose(network(X), atol=1e-5)
    assert not answer.requires_grad


@pytest.mark.parametrize("name", ["vgg16", "densenetd40k12"])
def test_teachers_of_other_families(name, handed_over, tmp_path):
    network = models.create_model(name, 10).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "teacher.pth")
    method, _ = handed_over(train_kd, "--T_model", name, "--T_model_path", str(tmp_path / "teacher.pth"))
    expected = losses.kd_loss(method.model(X), network(X), LABELS)
    found = method.loss(method.model, X, LABELS, 1.0)[0]
    assert found.group.item() == pytest.approx(expected.group.item(), rel=1e-3)  # the teacher is in channels_last


def test_baseline(handed_over):
    method, run = handed_over(train)
    z = method.model(X)
    check(method, losses.individual_loss(z, LABELS), {"": z})
    assert method.best == "" and run.num_epochs == 20


@pytest.mark.parametrize(("flags", "expected"), [(["--schedule", "3", "7"], [3, 7]), ([], [1, 1])])
def test_the_recipe_reaches_the_optimizer(flags, expected, monkeypatch, tmp_path):
    """Without --schedule: half and three quarters of the epochs."""
    made = []
    sgd = step.sgd
    monkeypatch.setattr(step, "sgd", lambda *args: made.append(args) or sgd(*args))
    train.main([*DATA[:-1], "1", "--save_dir", str(tmp_path), "--lr", "0.05", "--wd", "0.01", *flags,
                "--batch_size", "700"])
    assert made[0][1:] == (0.05, 0.01, expected)
