"""Groups of students: their targets and what flows back through them. tests/test_methods.py takes a step of each."""

import pytest
import torch

import losses
import models

B, C = 4, 10
IMAGES = torch.randn(B, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 9, 3])


def gradient_of_bias(output, model, i):
    """d output[0, ..., 0] / d (student i's bias of the first class). This bias changes z_i alone, and no feature."""
    return torch.autograd.grad(output, model.heads[i].fc.bias, retain_graph=True)[0][0].item()


@pytest.mark.parametrize("network_based", [False, True])
def test_targets_move_with_every_peer(network_based):
    """d t_a / d z_b = alpha_ab: the targets are not detached."""
    torch.manual_seed(0)
    model = models.OKDDip("resnet8", C, 4, network_based).eval()
    _, targets, _ = model(IMAGES)
    _, attention, _ = model.attend(IMAGES)
    for a in range(3):
        for b in range(3):
            assert gradient_of_bias(targets[0, a, 0], model, b) == pytest.approx(attention[0, a, b].item())


def test_ones_ensemble_is_the_gated_sum():
    """Also its gradient: d e / d z_i = g_i."""
    torch.manual_seed(0)
    model = models.ONE("resnet8", C, 3).eval()
    branches, ensemble = model(IMAGES)
    g = model.gate(model.trunks[0](IMAGES))
    assert ensemble.allclose(sum(g[:, i, None] * branches[:, i] for i in range(3)), atol=1e-6)
    for i in range(3):
        assert gradient_of_bias(ensemble[0, 0], model, i) == pytest.approx(g[0, i].item())


@pytest.mark.parametrize("m", [2, 4])
def test_cl_targets_move_with_the_others(m):
    model = models.CLILR("resnet8", C, m).eval()
    _, targets = model(IMAGES)
    for a in range(m):
        moved = [gradient_of_bias(targets[0, a, 0], model, b) for b in range(m)]
        assert moved == pytest.approx([0 if b == a else 1 / (m - 1) for b in range(m)])


@pytest.mark.parametrize("m", [2, 3])
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


@torch.no_grad()
@pytest.mark.parametrize(("group", "options"), [(models.CLILR, {"rescale": True}), (models.CLILR, {"rescale": False}),
                                                (models.OKDDip, {"network_based": True})])
def test_each_student_gets_its_view(group, options):
    model, views = group("resnet8", C, 3, **options).eval(), torch.randn(B, 3, 3, 32, 32)
    z = [model.student(i)(views[:, i]) for i in range(3)]
    first, *_, last = model(views)
    expected = (torch.stack(z[:2], 1), z[2]) if group is models.OKDDip else (
        torch.stack(z, 1), torch.stack([z[1] + z[2], z[0] + z[2], z[0] + z[1]], 1) / 2)
    torch.testing.assert_close((first, last), expected)


@pytest.mark.parametrize(("make", "said"), [
    (lambda: models.Branches("resnet8", C, 1), "at least 2"),
    (lambda: models.Branches(["resnet8", "resnet8", "vgg16"], C, 2, network_based=True), "as many networks, not 3"),
    (lambda: models.Branches(["resnet8", "vgg16"], C, 2), "different networks must be network-based"),
    (lambda: models.CLILR("resnet8", C, 3, network_based=True), "shared trunk"),
    (lambda: models.OKDDip("resnet8", C, 3, aggregation="median"), "unknown aggregation 'median'"),
    (lambda: models.Branches("resnet8", C, 4)(IMAGES.unsqueeze(1).expand(-1, 2, -1, -1, -1)), "4 .* views .* not 2"),
    (lambda: models.Branches("resnet8", C, 4, True)(IMAGES.unsqueeze(1)), "4 .* views .* not 1"),
    (lambda: models.ONE("resnet8", C, 2)(torch.stack([IMAGES, IMAGES], 1)), "ONE .* the same for all students"),
    (lambda: models.FFL("resnet8", C, 2)(torch.stack([IMAGES, IMAGES], 1)), "FFL .* the same for all students")])
def test_impossible_groups(make, said):
    with pytest.raises(ValueError, match=said):
        make()


# --- the widths that a group measures


@pytest.mark.parametrize("name", ["resnet8", "vgg16", "densenetd40k12", "resnet18"])
def test_measuring_the_widths_changes_nothing(name, monkeypatch):
    """Not the initial weights, not BatchNorm's statistics, not the mode, not the random numbers after it."""
    def made(dropout):
        torch.manual_seed(0)
        model = models.Branches(name, C, 2, dropout=dropout)
        assert all(module.training for module in model.modules())
        return model.state_dict(), torch.rand(3)

    dropout = 0.5 if name == "vgg16" else 0.0
    measured, after = made(dropout)
    monkeypatch.setattr(models.Branches, "measure_widths", lambda self, size: (0, 0))
    plain, plain_after = made(dropout)
    assert after.equal(plain_after) and all(value.equal(measured[key]) for key, value in plain.items())
