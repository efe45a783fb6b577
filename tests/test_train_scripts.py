"""From the flags to the loss: what each script hands to the epoch loop, against the losses called directly."""

import shutil

import pytest
import torch

import losses
import models
import train
import train_DML
import train_FFL
import train_GL
import train_kd
import train_KDCL
import train_OKDPH
import train_one
import train_PCL
from runtime.errors import UserError
from training import loop

X, LABELS, W = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 3, 9]), 0.3
VIEWS = torch.randn(4, 4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
DATA = ["--model", "resnet8", "--dataset", "DIGITS", "--device", "cpu", "--num_epochs", "20"]
HYPER = ["--temperature", "2", "--loss", "CE", "--num_branches", "3"]
RAMP = [*HYPER, "--alpha", "0.5", "--length", "5", "--start_consistency", "0.1"]


@pytest.fixture
def handed_over(monkeypatch, tmp_path):
    """handed_over(script, flags...) -> the method (its model in evaluation mode) and the run that the script made."""
    def start(script, *flags):
        seen = []
        monkeypatch.setattr(loop, "fit", lambda method, train_loader, test_loader, run: seen.extend((method, run)))
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
    return network.eval(), ["--T_model", "resnet14", "--T_model_path", str(path)]


def check(method, terms, outputs, best, ramp_up=False):
    """The terms of the loss, the logits of every output in training and in evaluation, what is best, and w(e)."""
    found, logits = method.loss(method.model, X, LABELS, W)
    same_terms(found, terms)
    assert list(method.outputs) == list(outputs) and method.best == best
    for z in (logits, method.predict(X)[0]):
        assert z.keys() == outputs.keys()
        for output, expected in outputs.items():
            assert z[output].allclose(expected, atol=1e-6), output
    assert [method.ramp_up(e, 20) for e in range(20)] == [losses.ramp_up(e, 20, 0.1, 5) if ramp_up else 1
                                                          for e in range(20)]


def same_terms(found, expected):
    assert list(found) == list(expected)
    for name, value in found.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-5), name


def students(z, name="stu", ensemble=""):
    return {**{f"{name}{i}": z[:, i] for i in range(z.shape[1])}, ensemble: z.mean(1)}


def test_baseline(handed_over):
    method, run = handed_over(train)
    z = method.model(X)
    check(method, losses.individual_loss(z, LABELS), {"": z}, "")
    assert run.unchangeable["num_epochs"] == 20


@pytest.mark.parametrize("more", [[], ["--MulStu"], ["--choose_E"]])
def test_okddip(more, handed_over):
    method, _ = handed_over(train_GL, *RAMP, *more)
    assert method.model.network_based == ("--MulStu" in more) and method.model.num_branches == 3
    peers, targets, leader = method.model(X)
    check(method, losses.okddip_loss(peers, targets, leader, LABELS, W, 2.0, 0.5, "CE"),
          {"stu_": leader, **students(peers)}, "" if "--choose_E" in more else "stu_", ramp_up=True)


@pytest.mark.parametrize("name", [name for name in models.AGGREGATIONS if name != "attention"])
def test_okddip_with_other_weights(name, handed_over):
    """Table 5: each is a run of its own, and measures its weights."""
    method, run = handed_over(train_GL, "--aggregation", name)
    _, measured = method.predict(X)
    alpha, itself = measured["attention"], measured["attention_self"]
    assert run.folder.parent.name == f"OKDDip-{name}" and alpha.shape == (4, 3, 3)
    assert alpha.sum(-1).allclose(torch.ones(4, 3))
    assert itself.allclose(alpha.diagonal(dim1=1, dim2=2).mean(1).double())


@pytest.mark.parametrize("more", [[], ["--MulStu"], ["--aggregation", "others", "--num_branches", "4"]])
def test_okddip_with_detached_targets(more, handed_over):
    """The students' gradients are those of constant targets; W_L and W_E have none, so they stay as drawn."""
    method, run = handed_over(train_GL, *RAMP, *more, "--detach_targets")
    assert run.folder.parent.name.endswith("-detach_targets")
    method.loss(method.model, X, LABELS, W)[0].total.backward()
    found = {name: p.grad for name, p in method.model.named_parameters()}
    assert {name for name, g in found.items() if g is None} == {"aggregation.W_L.weight", "aggregation.W_E.weight"}
    method.model.zero_grad()
    with torch.no_grad():
        constant, taught_leader = method.model(X)[1], method.model(X)[0].mean(1)
    peers, _, leader = method.model(X)
    group = torch.cat([peers, leader.unsqueeze(1)], 1)
    targets = torch.cat([constant, taught_leader.unsqueeze(1)], 1)
    (losses.true_loss(group, LABELS) + 0.5 * W * losses.distillation(targets, group, 2.0, "CE")).backward()
    for name, p in method.model.named_parameters():
        assert found[name] is None or found[name].allclose(p.grad, rtol=1e-4, atol=1e-6), name
    before = method.model.aggregation.W_L.weight.clone()
    loop.Stepper(method, 0.1, 5e-4, [9], torch.device("cpu")).step(X, LABELS, W)
    assert method.model.aggregation.W_L.weight.equal(before)  # no weight decay either


def test_okddip_without_leader(handed_over):
    method, _ = handed_over(train_GL, *RAMP, "--no_leader")
    z, targets, _ = method.model(X)
    check(method, losses.okddip_loss(z, targets, None, LABELS, W, 2.0, 0.5, "CE"), students(z), "", ramp_up=True)


def test_okddip_with_a_teacher(handed_over, teacher):
    network, flags = teacher
    method, run = handed_over(train_GL, *RAMP, *flags)
    peers, targets, leader = method.model(X)
    terms = losses.okddip_loss(peers, targets, leader, LABELS, W, 2.0, 0.5, "CE", teacher=network(X))
    assert list(terms) == ["total", "true", "group", "teacher"] and run.folder.parent.name == "OKDDip+KD"
    same_terms(method.loss(method.model, X, LABELS, W)[0], terms)


def test_one(handed_over):
    method, _ = handed_over(train_one, *RAMP)
    z, e = method.model(X)
    check(method, losses.one_loss(z, e, LABELS, W, 2.0, 0.5, "CE"), {**students(z), "gate_": e}, "mean_", ramp_up=True)


@pytest.mark.parametrize("more", [[], ["--bpscale"], ["--MulStu"]])
def test_cl(more, handed_over):
    method, _ = handed_over(train_one, *RAMP, "--avg", *more)
    assert method.model.rescale == ("--bpscale" in more) and method.model.network_based == ("--MulStu" in more)
    z, targets = method.model(X)
    check(method, losses.cl_ilr_loss(z, targets, LABELS, W, 2.0, 0.5, "CE"), students(z), "mean_", ramp_up=True)


@pytest.mark.parametrize("more", [[], ["--MulStu"]])
def test_individual(more, handed_over):
    method, _ = handed_over(train_one, *RAMP, "--ind", *more)
    assert method.model.network_based == ("--MulStu" in more)
    z = method.model(X)
    check(method, losses.individual_loss(z, LABELS), students(z), "mean_", ramp_up=True)


@pytest.mark.parametrize(("kind", "detached"), [("ensemble", False), ("ensemble", True), ("pairwise", False),
                                                ("pairwise", True)])
def test_dml(kind, detached, handed_over):
    method, run = handed_over(train_DML, *HYPER, "--type", kind, *["--detach_targets"] * detached)
    assert method.model.network_based and run.folder.parent.name == (
        "DML" + "-pairwise" * (kind == "pairwise") + "-detach_targets" * detached)
    z = method.model(X)
    check(method, losses.dml_loss(z, LABELS, 2.0, "CE", kind == "pairwise"), students(z), "mean_")
    leaves = [p for p in method.model.parameters() if p.requires_grad]
    found = torch.autograd.grad(method.loss(method.model, X, LABELS, W)[0].total, leaves)
    for detach in (False, True):
        terms = losses.dml_loss(method.model(X), LABELS, 2.0, "CE", kind == "pairwise", detach_targets=detach)
        gradients = torch.autograd.grad(terms.total, leaves)
        assert all(a.allclose(b, atol=1e-6) for a, b in zip(found, gradients, strict=True)) == (detach == detached)


def test_kd(handed_over, teacher):
    network, flags = teacher
    method, _ = handed_over(train_kd, *HYPER[:4], *flags, "--alpha", "0.5")
    z = method.model(X)
    check(method, losses.kd_loss(z, network(X), LABELS, 2.0, 0.5, "CE"), {"": z}, "")
    assert method.teacher(X).equal(method.teacher(X)) and not method.teacher(X).requires_grad


@pytest.mark.parametrize("name", ["vgg16", "densenetd40k12"])
def test_teachers_of_other_families(name, handed_over, tmp_path):
    network = models.create_model(name, 10).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "teacher.pth")
    method, _ = handed_over(train_kd, "--T_model", name, "--T_model_path", str(tmp_path / "teacher.pth"))
    expected = losses.kd_loss(method.model(X), network(X), LABELS)
    found = method.loss(method.model, X, LABELS, 1.0)[0]
    assert found.group.item() == pytest.approx(expected.group.item(), rel=1e-3)  # the teacher is in channels_last


@pytest.mark.parametrize("more", [[], ["--MulStu"]])
def test_ffl(more, handed_over):
    method, run = handed_over(train_FFL, *RAMP, *more)
    assert run.folder.parent.name == ("FFL-N" if more else "FFL") and method.model.network_based == bool(more)
    z, s = method.model(X)
    check(method, losses.ffl_loss(z, s, LABELS, W, 2.0, 0.5, "CE"), {**students(z), "fused_": s}, "mean_", ramp_up=True)


def test_pcl(handed_over):
    method, _ = handed_over(train_PCL, *RAMP)
    z, s, z_mean = method.model(X)
    outputs = {"stu_": z_mean[:, 0], **students(z), "fused_": s, **students(z_mean, "ema", "ema_ensemble_")}
    check(method, losses.pcl_loss(z, s, z_mean, LABELS, W, 2.0, 0.5, "CE"), outputs, "stu_", ramp_up=True)
    same_terms(method.loss(method.model, VIEWS[:, :3], LABELS, W)[0],
               losses.pcl_loss(*method.model(VIEWS[:, :3]), LABELS, W, 2.0, 0.5, "CE"))
    before = method.model.mean.state_dict()["heads.0.fc.weight"].clone()
    with torch.no_grad():
        method.model.peers.heads[0].fc.weight.add_(1.0)
    method.after_step(1, 1)  # d = 1/2
    assert method.model.mean.state_dict()["heads.0.fc.weight"].allclose(before + 0.5)


@pytest.mark.parametrize("target", ["mean", "naive", "minlogit"])
def test_kdcl(target, handed_over):
    method, run = handed_over(train_KDCL, *HYPER, "--target", target)
    assert run.folder.parent.name == ("KDCL" if target == "mean" else f"KDCL-{target}")
    z = method.model(X)
    t = models.TARGETS[target](z, LABELS)
    check(method, losses.kdcl_loss(z, t, LABELS, 2.0, "CE"), students(z), "mean_")
    z = method.model(VIEWS[:, :3])
    same_terms(method.loss(method.model, VIEWS[:, :3], LABELS, W)[0],
               losses.kdcl_loss(z, models.TARGETS[target](z, LABELS), LABELS, 2.0, "CE"))


def test_kdcl_general_weighs_by_the_held_out_images(handed_over):
    """v anew after an epoch: that of the errors on the held-out images, 1/m before."""
    method, _ = handed_over(train_KDCL, "--num_branches", "2", "--target", "general", "--val_size", "100")
    assert method.model.v.tolist() == [0.5, 0.5]
    with torch.no_grad():
        method.model.heads[0].fc.weight.mul_(0.01)  # this network now answers with equal probabilities
        method.model.heads[1].fc.weight.mul_(20)  # and this one is sure of wrong classes
    held_out = [(X, LABELS), (X.flip(3), LABELS)]

    class Loader(list):
        device = torch.device("cpu")

    method.after_epoch(Loader(held_out), torch.autocast("cpu", enabled=False))
    C = torch.zeros(2, 2, dtype=torch.float64)
    with torch.no_grad():
        for images, labels in held_out:
            errors = method.model(images).softmax(-1) - torch.nn.functional.one_hot(labels, 10).unsqueeze(1)
            C += sum(torch.outer(e[:, c], e[:, c]) for e in errors.double() for c in range(10)) / 8
    v = torch.linalg.solve(C, torch.ones(2, dtype=torch.float64))
    assert method.model.v.tolist() == pytest.approx((v / v.sum()).tolist(), rel=1e-3) and v[0] > v[1]


def test_kdcl_general_needs_held_out_images(image_folder, handed_over):
    """Of --val_size, or those in val/ of class folders."""
    root = image_folder(train=4, test=3)
    flags = ["--num_branches", "2", "--target", "general", "--batch_size", "4"]
    for data in ([], ["--dataset", "folder", "--data_dir", str(root)]):
        with pytest.raises(UserError, match="measures its weights on held-out images: add --val_size N"):
            handed_over(train_KDCL, *flags, *data)
    shutil.copytree(root / "test", root / "val")
    handed_over(train_KDCL, *flags, *data)


@pytest.mark.parametrize("more", [[], ["--hybrid", "dirichlet"], ["--hybrid_gradient"]])
def test_okdph(more, handed_over):
    flags = ["--omega", "0.7", "--beta", "0.9", "--gamma", "0.25"]
    method, run = handed_over(train_OKDPH, *HYPER, *flags, *more)
    assert run.folder.parent.name == "-".join(["OKDPH", *(word.strip("-") for word in more if word != "--hybrid")])
    z, hybrid = method.model(X)
    terms = losses.okdph_loss(z, hybrid, LABELS, 2.0, 0.7, 0.9, "CE")
    check(method, terms, {"stu_": hybrid, **students(z)}, "stu_")
    drawn = []
    for number in (1, 2, 1):
        method.before_step(number, number)
        drawn.append(method.model.r.clone())
        assert drawn[-1].sum().item() == pytest.approx(1) and drawn[-1].min() >= 0
    assert drawn[0].equal(drawn[2])  # from the seed and the step: a resumed run draws the same
    if "dirichlet" in more:
        assert not drawn[0].allclose(drawn[1])
    else:
        assert drawn[0].allclose(torch.full((3,), 1 / 3))


@pytest.mark.parametrize(("script", "views"), [(train_PCL, 4), (train_KDCL, 4), (train_OKDPH, 5), (train_FFL, 1)])
def test_every_student_sees_its_own_view(script, views, monkeypatch, tmp_path):
    """What the training loader gives: one view for each student, for OKDPH one more for the hybrid."""
    shapes = []
    monkeypatch.setattr(loop, "fit", lambda method, train, test, run: shapes.extend(
        next(iter(loader))[0].shape for loader in (train, test)))
    script.main([*DATA, "--save_dir", str(tmp_path), "--batch_size", "16"])
    assert shapes == [(16, views, 3, 32, 32) if views > 1 else (16, 3, 32, 32), (16, 3, 32, 32)]


@pytest.mark.parametrize(("flags", "expected"), [(["--schedule", "3", "7"], [3, 7]), ([], [10, 15])])
def test_the_recipe_reaches_the_optimizer(flags, expected, monkeypatch, tmp_path):
    """Without --schedule: half and three quarters of the epochs."""
    made = []

    def note(model, *recipe):
        made.append(recipe)
        raise InterruptedError

    monkeypatch.setattr(loop, "sgd", note)
    with pytest.raises(InterruptedError):
        train.main([*DATA, "--save_dir", str(tmp_path), "--lr", "0.05", "--wd", "0.01", *flags])
    assert made == [(0.05, 0.01, expected)]
