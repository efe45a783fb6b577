"""Groups of students: shapes, gradients, targets, and each student as a plain network."""

from functools import partial

import pytest
import torch

import losses
import models
from models import registry, resnet

B, C = 4, 10
IMAGES = torch.randn(B, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 9, 3])

METHODS = {
    "OKDDip": (lambda m: models.OKDDip("resnet8", C, m), lambda model: losses.okddip_loss(*model(IMAGES), LABELS)),
    "OKDDip-N": (lambda m: models.OKDDip("resnet8", C, m, network_based=True),
                 lambda model: losses.okddip_loss(*model(IMAGES), LABELS)),
    "ONE": (lambda m: models.ONE("resnet8", C, m), lambda model: losses.one_loss(*model(IMAGES), LABELS)),
    "CL-ILR": (lambda m: models.CLILR("resnet8", C, m), lambda model: losses.cl_ilr_loss(*model(IMAGES), LABELS)),
    "CL": (lambda m: models.CLILR("resnet8", C, m, rescale=False),
           lambda model: losses.cl_ilr_loss(*model(IMAGES), LABELS)),
    "CL-N": (lambda m: models.CLILR("resnet8", C, m, rescale=False, network_based=True),
             lambda model: losses.cl_ilr_loss(*model(IMAGES), LABELS)),
    "Ind": (lambda m: models.Branches("resnet8", C, m), lambda model: losses.individual_loss(model(IMAGES), LABELS)),
    "DML": (lambda m: models.Branches("resnet8", C, m, network_based=True),
            lambda model: losses.dml_loss(model(IMAGES), LABELS)),
    "DML pairwise": (lambda m: models.Branches("resnet8", C, m, network_based=True),
                     lambda model: losses.dml_loss(model(IMAGES), LABELS, pairwise=True)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("m", [2, 3, 8])
def test_every_weight_receives_a_gradient(method, m):
    """Also W_L and W_E, through the targets. A single peer (OKDDip, m = 2) always has weight 1: its gradient is 0."""
    torch.manual_seed(0)
    build, objective = METHODS[method]
    model = build(m)
    terms = objective(model)
    assert torch.isfinite(terms.total)
    terms.total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, f"{name} has no gradient"
        if not (method.startswith("OKDDip") and m == 2 and name.startswith("aggregation")):
            assert p.grad.abs().max() > 0, f"the gradient of {name} is 0"


def test_detached_targets_freeze_the_attention():
    model = models.OKDDip("resnet8", C, 4)
    peers, targets, leader = model(IMAGES)
    losses.okddip_loss(peers, targets.detach(), leader, LABELS).total.backward()
    assert model.aggregation.W_L.weight.grad is None and model.aggregation.W_E.weight.grad is None


def test_okddip_has_three_peers_and_a_leader_by_default():
    peers, targets, leader = models.OKDDip("resnet8", C)(IMAGES)
    assert peers.shape == targets.shape == (B, 3, C) and leader.shape == (B, C)


@pytest.mark.parametrize("network_based", [False, True])
@pytest.mark.parametrize("m", [2, 3, 8])
def test_okddip_targets(m, network_based):
    torch.manual_seed(0)
    model = models.OKDDip("resnet8", C, m, network_based).eval()
    peers, targets, leader = model(IMAGES)
    assert peers.shape == targets.shape == (B, m - 1, C) and leader.shape == (B, C)
    again, alpha, _ = model.attend(IMAGES)
    assert again.equal(peers) and alpha.shape == (B, m - 1, m - 1)
    for a in range(m - 1):
        expected = sum(alpha[:, a, b, None] * peers[:, b] for b in range(m - 1))
        assert targets[:, a].allclose(expected, atol=1e-5)


def test_attention_looks_at_each_peers_own_features():
    torch.manual_seed(0)
    model = models.OKDDip("resnet8", C, 3).eval()
    x = model.trunks[0](IMAGES)
    h = torch.stack([head(x)[0] for head in model.heads[:2]], 1)
    assert model.attend(IMAGES)[1].equal(model.aggregation(h, None))


def test_one_ensemble_is_the_gated_sum():
    torch.manual_seed(0)
    model = models.ONE("resnet8", C, 3).eval()
    branches, ensemble = model(IMAGES)
    g = model.gate(model.trunks[0](IMAGES))
    assert ensemble.allclose(sum(g[:, i, None] * branches[:, i] for i in range(3)), atol=1e-6)


@pytest.mark.parametrize("m", [2, 3, 8])
def test_cl_ilr_divides_the_trunks_gradient(m):
    """Rescaling divides the gradient of the trunk by m. The gradients of the heads stay the same."""
    torch.manual_seed(0)
    plain = models.CLILR("resnet8", C, m, rescale=False).double()
    rescaled = models.CLILR("resnet8", C, m, rescale=True).double()
    rescaled.load_state_dict(plain.state_dict())
    for model in (plain, rescaled):
        losses.cl_ilr_loss(*model(IMAGES.double()), LABELS).total.backward()
    for (name, p), (_, q) in zip(plain.named_parameters(), rescaled.named_parameters(), strict=True):
        assert q.grad.allclose(p.grad / (m if name.startswith("trunks") else 1), rtol=1e-9, atol=1e-15), name


def test_rescaling_needs_a_shared_trunk():
    with pytest.raises(ValueError, match="shared trunk"):
        models.CLILR("resnet8", C, 3, network_based=True)


@pytest.mark.parametrize("m", [-1, 0, 1])
def test_a_group_has_two_students(m):
    with pytest.raises(ValueError, match="at least 2"):
        models.Branches("resnet8", C, m)


def test_the_smallest_groups_are_possible():
    assert models.OKDDip("resnet8", C, 3, aggregation="others")(IMAGES)[0].shape == (B, 2, C)
    assert models.Branches(["resnet8", "resnet14"], C, 2, network_based=True).name == "resnet8+resnet14"


def test_impossible_groups():
    with pytest.raises(ValueError, match="2 students need as many networks, not 3"):
        models.Branches(["resnet8", "resnet8", "vgg16"], C, 2, network_based=True)
    with pytest.raises(ValueError, match="different networks must be network-based"):
        models.Branches(["resnet8", "vgg16"], C, 2)
    with pytest.raises(ValueError, match="unknown aggregation 'median'"):
        models.OKDDip("resnet8", C, 3, aggregation="median")


@pytest.mark.parametrize("network_based", [False, True])
@pytest.mark.parametrize("i", [0, 1, -1])
def test_a_student_is_a_plain_network(network_based, i):
    """Its weights load into create_model. The network then has the logits of this student in the group."""
    torch.manual_seed(0)
    group = models.Branches("resnet8", C, 3, network_based).eval()
    network = models.create_model("resnet8", C).eval()
    network.load_state_dict(group.student(i).state_dict())
    assert network(IMAGES).allclose(group(IMAGES)[:, i], atol=1e-5)


def test_students_differ_from_the_start():
    z = models.Branches("resnet8", C, 3).eval()(IMAGES)
    assert not z[:, 0].allclose(z[:, 1], atol=0.1)



@pytest.mark.parametrize("method", METHODS)
def test_every_trunk_and_head_runs_once(method):
    build, objective = METHODS[method]
    model, calls = build(3), []
    parts = [*model.trunks, *model.heads]
    for part in parts:
        part.register_forward_hook(lambda part, *_: calls.append(part))
    objective(model)
    assert len(calls) == len(parts) and set(map(id, calls)) == set(map(id, parts))


def gradient_of_bias(output, model, i):
    """d output[0, ..., 0] / d (student i's bias of the first class). This bias changes z_i alone, and no feature."""
    return torch.autograd.grad(output, model.heads[i].fc.bias, retain_graph=True)[0][0]


@pytest.mark.parametrize("network_based", [False, True])
def test_targets_move_with_every_peer(network_based):
    """d t_a / d z_b = alpha_ab: the targets are not detached."""
    torch.manual_seed(0)
    model = models.OKDDip("resnet8", C, 4, network_based).eval()
    _, targets, _ = model(IMAGES)
    _, attention, _ = model.attend(IMAGES)
    for a in range(3):
        for b in range(3):
            assert gradient_of_bias(targets[0, a, 0], model, b).item() == pytest.approx(attention[0, a, b].item())


def test_ones_ensemble_moves_with_every_branch():
    torch.manual_seed(0)
    model = models.ONE("resnet8", C, 3).eval()
    _, ensemble = model(IMAGES)
    g = model.gate(model.trunks[0](IMAGES))
    for i in range(3):
        assert gradient_of_bias(ensemble[0, 0], model, i).item() == pytest.approx(g[0, i].item())


def test_cl_targets_move_with_the_others():
    model = models.CLILR("resnet8", C, 3).eval()
    _, targets = model(IMAGES)
    for a in range(3):
        moved = [gradient_of_bias(targets[0, a, 0], model, b).item() for b in range(3)]
        assert moved == pytest.approx([0 if b == a else 0.5 for b in range(3)])


@pytest.mark.parametrize("network_based", [False, True])
def test_each_student_needs_a_view(network_based):
    group = models.Branches("resnet8", 10, 4, network_based)
    with pytest.raises(ValueError, match="4 students need as many views of an image, not 2"):
        group(torch.randn(8, 2, 3, 32, 32))


class WrongHead(resnet.Head):
    """It says that it has one feature more than it returns."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.width += 1


class WrongTrunk(resnet.Trunk):
    """The same with its channels."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.width += 1


@pytest.mark.parametrize(("part", "wrong", "said"), [
    ("head", WrongHead, "head of own says that its width is 65, but it returns 64 features"),
    ("trunk", WrongTrunk, "trunk of own says that its width is 33, but it returns 32 channels")])
@pytest.mark.parametrize("build", [models.OKDDip, models.ONE, models.PCL, models.FFL, models.KDCL])
def test_a_wrong_width_is_named_when_the_group_is_made(part, wrong, said, build, monkeypatch):
    right = registry.NETWORKS["resnet8"]
    made = getattr(right, part)
    assert isinstance(made, partial)
    own = right._replace(**{part: partial(wrong, *made.args, **made.keywords)})
    monkeypatch.setitem(registry.NETWORKS, "own", own)
    with pytest.raises(ValueError, match=said):
        build("own", C, 3)


@pytest.mark.parametrize("name", ["resnet8", "vgg16", "densenetd40k12", "resnet18"])
def test_the_check_of_widths_changes_nothing(name, monkeypatch):
    """Not the initial weights, not BatchNorm's statistics, not the random numbers after it."""
    def made():
        torch.manual_seed(0)
        return models.Branches(name, C, 2).state_dict(), torch.rand(3)

    checked, after = made()
    monkeypatch.setattr(models.branches, "check_widths", lambda network: None)
    plain, plain_after = made()
    assert after.equal(plain_after) and all(value.equal(checked[key]) for key, value in plain.items())
