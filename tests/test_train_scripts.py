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
    """handed_over(script, flags...) -> the method (its model in evaluation mode) and the run that the script made.

    handed_over.loaders: those of the last one.
    """
    def start(script, *flags):
        seen = []
        monkeypatch.setattr(loop, "fit", lambda *given: seen.extend(given))
        script.main([*DATA, "--save_dir", str(tmp_path), *flags])
        method, *start.loaders, run = seen
        method.model.eval()
        return method, run

    return start


def teacher(name, folder):
    """-> a network and the flags that make it the teacher."""
    torch.manual_seed(1)
    network = models.create_model(name, 10)
    torch.save({"state_dict": network.state_dict()}, folder / "teacher.pth")
    return network.eval(), ["--T_model", name, "--T_model_path", str(folder / "teacher.pth")]


def same_terms(found, expected):
    assert list(found) == list(expected)
    for name, value in found.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-5), name


def students(z, name="stu", ensemble=""):
    return {**{f"{name}{i}": z[:, i] for i in range(z.shape[1])}, ensemble: z.mean(1)}


EXPECTED = {  # what a method's model returns for X -> the terms of the loss, and the logits of each output
    "baseline": lambda z: (losses.individual_loss(z, LABELS), {"": z}),
    "Ind": lambda z: (losses.individual_loss(z, LABELS), students(z)),
    "OKDDip": lambda z, t, leader, **more: (losses.okddip_loss(z, t, leader, LABELS, W, 2.0, 0.5, "CE", **more),
                                            ({} if leader is None else {"stu_": leader}) | students(z)),
    "ONE": lambda z, e: (losses.one_loss(z, e, LABELS, W, 2.0, 0.5, "CE"), {**students(z), "gate_": e}),
    "CL": lambda z, t: (losses.cl_ilr_loss(z, t, LABELS, W, 2.0, 0.5, "CE"), students(z)),
    "DML": lambda z, **more: (losses.dml_loss(z, LABELS, 2.0, "CE", **more), students(z)),
    "DML-pairwise": lambda z, **more: (losses.dml_loss(z, LABELS, 2.0, "CE", True, **more), students(z)),
    "FFL": lambda z, s: (losses.ffl_loss(z, s, LABELS, W, 2.0, 0.5, "CE"), {**students(z), "fused_": s}),
    "PCL": lambda z, s, z_mean: (
        losses.pcl_loss(z, s, z_mean, LABELS, W, 2.0, 0.5, "CE"),
        {"stu_": z_mean[:, 0], **students(z), "fused_": s, **students(z_mean, "ema", "ema_ensemble_")}),
    "OKDPH": lambda z, hybrid: (losses.okdph_loss(z, hybrid, LABELS, 2.0, 0.7, 0.9, "CE"),
                                {"stu_": hybrid, **students(z)}),
    **{"KDCL" + f"-{target}" * (target != "mean"): lambda z, rule=rule: (
        losses.kdcl_loss(z, rule(z, LABELS), LABELS, 2.0, "CE"), students(z))
       for target, rule in models.TARGETS.items()}}
CASES = [  # a run's folder, script, flags, the output that is best
    ("baseline", train, [], ""), ("OKDDip", train_GL, RAMP, "stu_"),
    ("OKDDip-N", train_GL, [*RAMP, "--MulStu"], "stu_"), ("OKDDip", train_GL, [*RAMP, "--choose_E"], ""),
    ("OKDDip-no_leader", train_GL, [*RAMP, "--no_leader"], ""),
    *((f"OKDDip-{name}", train_GL, [*RAMP, "--aggregation", name], "stu_")
      for name in models.AGGREGATIONS if name != "attention"),
    ("OKDDip-detach_targets", train_GL, [*RAMP, "--detach_targets"], "stu_"),
    ("OKDDip-N-others-detach_targets", train_GL, [*RAMP, "--MulStu", "--aggregation", "others", "--detach_targets"],
     "stu_"), ("ONE", train_one, RAMP, "mean_"),
    ("CL", train_one, [*RAMP, "--avg"], "mean_"),
    ("CL-ILR", train_one, [*RAMP, "--avg", "--bpscale"], "mean_"),
    ("CL-N", train_one, [*RAMP, "--avg", "--MulStu"], "mean_"), ("Ind", train_one, [*RAMP, "--ind"], "mean_"),
    ("Ind-N", train_one, [*RAMP, "--ind", "--MulStu"], "mean_"), ("DML", train_DML, HYPER, "mean_"),
    ("DML-pairwise", train_DML, [*HYPER, "--type", "pairwise", "--choose_E"], ""),
    ("DML-detach_targets", train_DML, [*HYPER, "--detach_targets"], "mean_"),
    ("DML-pairwise-detach_targets", train_DML, [*HYPER, "--type", "pairwise", "--detach_targets"], "mean_"),
    ("FFL", train_FFL, RAMP, "mean_"),
    ("FFL-N", train_FFL, [*RAMP, "--MulStu"], "mean_"), ("PCL", train_PCL, RAMP, "stu_"),
    ("KDCL", train_KDCL, HYPER, "mean_"), ("KDCL-naive", train_KDCL, [*HYPER, "--target", "naive"], "mean_"),
    ("KDCL-minlogit", train_KDCL, [*HYPER, "--target", "minlogit"], "mean_"),
    ("OKDPH", train_OKDPH, [*HYPER, "--omega", "0.7", "--beta", "0.9"], "stu_")]


@pytest.mark.parametrize(("folder", "script", "flags", "best"), CASES)
def test_a_script(folder, script, flags, best, handed_over):
    """The loss's terms and gradients, the logits of every output in training and evaluation, what is best, and w(e)."""
    method, run = handed_over(script, *flags)
    assert run.method == folder and method.best == best and run.unchangeable["num_epochs"] == 20
    if script is train_PCL:  # its mean peers begin as the peers
        torch._foreach_mul_([*method.model.mean.parameters()], 1.1)
    returned = method.model(X)
    name, more = folder.removesuffix("-detach_targets"), {"detach_targets": True} if "--detach_targets" in flags else {}
    expected = EXPECTED.get(name) or EXPECTED[name.partition("-")[0]]
    terms, outputs = expected(*(returned if isinstance(returned, tuple) else (returned,)), **more)
    found, logits = method.loss(method.model, X, LABELS, W)
    same_terms(found, terms)
    weights = [p for p in method.model.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(loss.total, weights, allow_unused=True) for loss in (found, terms)]
    for ours, theirs in zip(*gradients, strict=True):
        assert ours is theirs is None or ours.allclose(theirs, rtol=1e-4, atol=1e-6)
    assert list(method.outputs) == list(outputs)
    for z in (logits, method.predict(X)[0]):
        assert z.keys() == outputs.keys()
        for output, values in outputs.items():
            assert z[output].allclose(values, atol=1e-6), output
    assert [method.ramp_up(e, 20) for e in range(20)] == [losses.ramp_up(e, 20, 0.1, 5) if "--length" in flags else 1
                                                          for e in range(20)]
    if isinstance(method.model, models.Branches):
        assert method.model.network_based == ("--MulStu" in flags or script in (train_DML, train_KDCL, train_OKDPH))
        assert getattr(method.model, "rescale", False) == ("--bpscale" in flags)
    if script is train_GL:
        assert type(method.model.aggregation) is models.AGGREGATIONS[method.args.aggregation]


def test_detached_targets_leave_the_attention_as_drawn(handed_over):
    """It gets no gradient, and no weight decay either."""
    method, _ = handed_over(train_GL, *RAMP, "--detach_targets")
    before = method.model.aggregation.W_L.weight.clone()
    loop.Stepper(method, 0.1, 5e-4, [9], torch.device("cpu")).step(X, LABELS, W)
    assert method.model.aggregation.W_L.weight.equal(before)


def test_okddip_with_a_teacher(handed_over, tmp_path):
    network, flags = teacher("resnet14", tmp_path)
    method, run = handed_over(train_GL, *RAMP, *flags)
    peers, targets, leader = method.model(X)
    terms = losses.okddip_loss(peers, targets, leader, LABELS, W, 2.0, 0.5, "CE", teacher=network(X))
    assert list(terms) == ["total", "true", "group", "teacher"] and run.folder.parent.name == "OKDDip+KD"
    same_terms(method.loss(method.model, X, LABELS, W)[0], terms)


@pytest.mark.parametrize("name", ["resnet14", "vgg16", "densenetd40k12"])
def test_teachers_of_other_families(name, handed_over, tmp_path):
    network, flags = teacher(name, tmp_path)
    method, run = handed_over(train_kd, *HYPER[:4], *flags, "--alpha", "0.5")
    z = method.model(X)
    expected = losses.kd_loss(z, network(X), LABELS, 2.0, 0.5, "CE")
    for term, found in method.loss(method.model, X, LABELS, W)[0].items():
        assert found.item() == pytest.approx(expected[term].item(), rel=1e-3), term  # the teacher is in channels_last
    assert run.folder.parent.name == "KD" and method.predict(X)[0][""].equal(z) and method.ramp_up(0, 20) == 1
    assert method.teacher(X).equal(method.teacher(X)) and not method.teacher(X).requires_grad


def test_views_in_training(handed_over):
    """View i is that of student i; the mean model of PCL follows after each step."""
    method, _ = handed_over(train_KDCL, *HYPER)
    z = torch.stack([method.model.student(i)(VIEWS[:, i]) for i in range(3)], 1)
    same_terms(method.loss(method.model, VIEWS[:, :3], LABELS, W)[0], EXPECTED["KDCL"](z)[0])
    method, _ = handed_over(train_PCL, *RAMP)
    same_terms(method.loss(method.model, VIEWS[:, :3], LABELS, W)[0], EXPECTED["PCL"](*method.model(VIEWS[:, :3]))[0])
    before = method.model.mean.state_dict()["heads.0.fc.weight"].clone()
    with torch.no_grad():
        method.model.peers.heads[0].fc.weight.add_(1.0)
    method.after_step(3, 1)  # the third step of the training: d = 3/4
    assert method.model.mean.state_dict()["heads.0.fc.weight"].allclose(before + 0.25)


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


@pytest.mark.parametrize(("script", "views"), [(train_PCL, 4), (train_KDCL, 4), (train_OKDPH, 5), (train_FFL, 1)])
def test_every_student_sees_its_own_view(script, views, handed_over):
    """What the training loader gives: one view for each student, for OKDPH one more for the hybrid."""
    handed_over(script, "--batch_size", "16")
    shapes = [next(iter(loader))[0].shape for loader in handed_over.loaders]
    assert shapes == [(16, views, 3, 32, 32) if views > 1 else (16, 3, 32, 32), (16, 3, 32, 32)]


@pytest.mark.parametrize(("flags", "expected"), [
    (["--schedule", "3", "7", "--amp", "bf16", "--compile", "--optimizer", "adamw"], ([3, 7], "bf16", True, "AdamW")),
    ([], ([10, 15], "off", False, "SGD"))])
def test_the_recipe_reaches_the_optimizer(flags, expected, monkeypatch, tmp_path):
    """And the step. Without --schedule: half and three quarters of the epochs."""
    made = []
    monkeypatch.setattr(loop, "describe", lambda run, stepper, *others: made.append(stepper) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.main([*DATA, "--save_dir", str(tmp_path), "--lr", "0.05", "--wd", "0.01", *flags])
    (stepper,) = made
    (weights,) = stepper.optimizer.param_groups
    assert (weights["lr"], weights["weight_decay"]) == (0.05, 0.01)
    assert (sorted(stepper.scheduler.milestones), stepper.amp, stepper.compiled,
            type(stepper.optimizer).__name__) == expected


def test_the_mixing_weights_of_okdph(handed_over):
    """1/m, or from Dirichlet(1), by the seed and the step: a resumed run draws the same."""
    drawn = []
    for seed in ("0", "1"):
        method, run = handed_over(train_OKDPH, *HYPER, "--hybrid", "dirichlet", "--hybrid_gradient", "--seed", seed)
        assert run.method == "OKDPH-dirichlet-hybrid_gradient"
        for step in (*range(1, 2001), 1):
            method.before_step(step, 2)
            drawn.append(method.model.r.clone())
    r = torch.stack(drawn)
    assert r[0].equal(r[2000]) and not r[0].allclose(r[2001])
    assert r.min() >= 0 and r.sum(1).allclose(torch.ones(len(r)))
    assert r.square().mean().item() == pytest.approx(1 / 6, rel=0.05)  # m = 3: 2 / (m (m + 1))
    method, _ = handed_over(train_OKDPH, *HYPER)
    method.before_step(1, 1)
    assert method.model.r.allclose(torch.full((3,), 1 / 3))


def test_pretrained_networks_get_images_as_their_weights_need_them(monkeypatch, handed_over):
    monkeypatch.setattr("models.external.weights_of", lambda name: models.plain_network(name, 1000).state_dict())
    handed_over(train, "--image_size", "64", "--model", "torchvision:mobilenet_v3_small", "--pretrained")
    for loader in handed_over.loaders:
        assert (loader.mean, loader.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
