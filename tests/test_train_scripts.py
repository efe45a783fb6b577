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
    same_terms(found, terms)
    assert list(method.outputs) == list(outputs)
    for z in (logits, method.predict(X)[0]):
        assert z.keys() == outputs.keys()
        for output, expected in outputs.items():
            assert z[output].allclose(expected, atol=1e-6), output


def same_terms(found, expected):
    assert list(found) == list(expected)
    for name, value in found.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-5), name


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
    assert list(terms) == ["total", "true", "group", "teacher"]
    same_terms(method.loss(method.model, X, LABELS, W)[0], terms)


def students(z, name="stu", ensemble=""):
    return {**{f"{name}{i}": z[:, i] for i in range(z.shape[1])}, ensemble: z.mean(1)}


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


@pytest.mark.parametrize("kind", ["ensemble", "pairwise"])
def test_dml_with_detached_targets(kind, handed_over):
    method, run = handed_over(train_DML, *HYPER, "--num_branches", "3", "--type", kind, "--detach_targets")
    assert run.folder.parent.name == {"ensemble": "DML", "pairwise": "DML-pairwise"}[kind] + "-detach_targets"
    leaves = [p for p in method.model.parameters() if p.requires_grad]
    found = torch.autograd.grad(method.loss(method.model, X, LABELS, W)[0].total, leaves)
    expected = torch.autograd.grad(
        losses.dml_loss(method.model(X), LABELS, 2.0, "CE", kind == "pairwise", detach_targets=True).total, leaves)
    other = torch.autograd.grad(losses.dml_loss(method.model(X), LABELS, 2.0, "CE", kind == "pairwise").total, leaves)
    assert all(a.allclose(b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    assert not all(a.allclose(b, atol=1e-6) for a, b in zip(found, other, strict=True))


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


@pytest.mark.parametrize("more", [[], ["--MulStu"]])
def test_ffl(more, handed_over):
    method, run = handed_over(train_FFL, *GROUP, "--length", "5", *more)
    assert run.folder.parent.name == ("FFL-N" if more else "FFL") and method.model.network_based == bool(more)
    z, s = method.model(X)
    check(method, losses.ffl_loss(z, s, LABELS, W, 2.0, 0.5, "CE"), {**students(z), "fused_": s})
    assert [method.ramp_up(e, 20) for e in range(20)] == [losses.ramp_up(e, 20, 0, 5) for e in range(20)]
    assert method.best == "mean_"


VIEWS = torch.randn(4, 4, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def check_views(method, views, terms):
    """The terms of the loss on views."""
    same_terms(method.loss(method.model, views, LABELS, W)[0], terms)


def test_pcl(handed_over):
    method, run = handed_over(train_PCL, *GROUP, "--length", "5")
    assert run.folder.parent.name == "PCL"
    z, s, z_mean = method.model(X)
    outputs = {"stu_": z_mean[:, 0], **students(z), "fused_": s, **students(z_mean, "ema", "ema_ensemble_")}
    check(method, losses.pcl_loss(z, s, z_mean, LABELS, W, 2.0, 0.5, "CE"), outputs)
    check_views(method, VIEWS[:, :3], losses.pcl_loss(*method.model(VIEWS[:, :3]), LABELS, W, 2.0, 0.5, "CE"))
    assert [method.ramp_up(e, 20) for e in range(20)] == [losses.ramp_up(e, 20, 0, 5) for e in range(20)]
    assert method.best == "stu_"
    before = method.model.mean.state_dict()["heads.0.fc.weight"].clone()
    with torch.no_grad():
        method.model.peers.heads[0].fc.weight.add_(1.0)
    method.after_step(1, 1)  # d = 1/2
    assert method.model.mean.state_dict()["heads.0.fc.weight"].allclose(before + 0.5)


@pytest.mark.parametrize("target", ["mean", "naive", "minlogit"])
def test_kdcl(target, handed_over):
    method, run = handed_over(train_KDCL, *HYPER, "--num_branches", "3", "--target", target)
    assert run.folder.parent.name == ("KDCL" if target == "mean" else f"KDCL-{target}")
    z = method.model(X)
    t = models.TARGETS[target](z, LABELS)
    check(method, losses.kdcl_loss(z, t, LABELS, 2.0, "CE"), students(z))
    z = method.model(VIEWS[:, :3])
    check_views(method, VIEWS[:, :3], losses.kdcl_loss(z, models.TARGETS[target](z, LABELS), LABELS, 2.0, "CE"))
    assert method.best == "mean_" and method.ramp_up(0, 20) == 1


def test_kdcl_general_needs_held_out_images(handed_over):
    with pytest.raises(UserError, match="--target general measures its weights on held-out images: add --val_size N"):
        handed_over(train_KDCL, "--target", "general")


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


@pytest.mark.parametrize("more", [[], ["--hybrid", "dirichlet"], ["--hybrid_gradient"]])
def test_okdph(more, handed_over):
    flags = ["--num_branches", "3", "--omega", "0.7", "--beta", "0.9", "--gamma", "0.25"]
    method, run = handed_over(train_OKDPH, *HYPER, *flags, *more)
    assert run.folder.parent.name == "-".join(["OKDPH", *(word.strip("-") for word in more if word != "--hybrid")])
    z, hybrid = method.model(X)
    check(method, losses.okdph_loss(z, hybrid, LABELS, 2.0, 0.7, 0.9, "CE"), {"stu_": hybrid, **students(z)})
    assert method.best == "stu_" and method.ramp_up(0, 20) == 1
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
    monkeypatch.setattr(script, "fit", lambda method, train, test, run: shapes.extend(
        next(iter(loader))[0].shape for loader in (train, test)))
    script.main([*DATA, "--save_dir", str(tmp_path), "--batch_size", "16"])
    assert shapes == [(16, views, 3, 32, 32) if views > 1 else (16, 3, 32, 32), (16, 3, 32, 32)]


def test_kdcl_general_takes_the_held_out_images_of_class_folders(image_folder, tmp_path, monkeypatch):
    """Those in val/, if there is a test/, too."""
    root, held_out = image_folder(train=4, test=3), []
    monkeypatch.setattr(train_KDCL, "fit", lambda method, train, test, run: held_out.append(train.held_out.num_images))
    argv = ["--model", "resnet8", "--dataset", "folder", "--data_dir", str(root), "--save_dir", str(tmp_path),
            "--num_branches", "2", "--target", "general", "--batch_size", "4", "--device", "cpu"]
    with pytest.raises(UserError, match="add --val_size"):
        train_KDCL.main(argv)
    shutil.copytree(root / "test", root / "val")
    train_KDCL.main(argv)
    assert held_out == [6]


@pytest.mark.parametrize(("script", "flags", "said"), [
    *((script, ["--models", "resnet8", "resnet14"], "unrecognized arguments: --models resnet8 resnet14")
      for script in (train, train_kd, train_GL, train_FFL, train_PCL, train_OKDPH)),
    (train_one, ["--models", "resnet8", "resnet14", "--ind"], "--models: branches share the trunk of one network"),
    (train_one, ["--models", "resnet8", "resnet14"], "--models: branches share the trunk of one network"),
    (train_one, ["--models", "resnet8", "resnet14", "--model", "vgg16"], "use --model, or add --MulStu to --ind or"),
    (train_one, ["--models", "resnet8", "resnet14", "--MulStu"], "add --ind or --avg"),
    (train_one, ["--models", "resnet8", "vgg16", "--MulStu", "--ind", "--model", "vgg16"], "leave out --model "),
    (train_DML, ["--models", "resnet8"], "different networks"),
    (train_DML, ["--models", "resnet8", "resnet14", "--num_branches", "3"], "leave out --num_branches"),
    (train_DML, ["--models", "resnet8", "resnet14", "--model", "resnet20"], "leave out --model"),
    (train_DML, ["--models", "resnet8", "resnet14", "--num_b", "5"], "unrecognized arguments: --num_b 5"),
    (train_DML, ["--models", "resnet8", "resnet8"], "different networks"),
    (train_DML, ["--models", "resnet8", "resnet14", "--num_branches", "4"], "leave out --num_branches"),
    (train_OKDPH, ["--omega", "1.5"], "must be at most 1")])
def test_flags_that_do_not_fit(script, flags, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.parse_args(flags)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


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
