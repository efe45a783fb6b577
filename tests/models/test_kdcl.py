"""KDCL's targets, against a slow formula and by their properties."""

import pytest
import slow
import torch

import models
from models.kdcl import TARGETS, error_products, general_weights

B, M, C = 30, 3, 6
generator = torch.Generator().manual_seed(0)
Z = 3 * torch.randn(B, M, C, generator=generator, dtype=torch.float64)
LABELS = torch.randint(C, (B,), generator=generator)


@pytest.mark.parametrize("rule", TARGETS)
def test_targets(rule):
    t = TARGETS[rule](Z, LABELS)
    for b in range(B):
        assert t[b].tolist() == pytest.approx(slow.kdcl_target(rule, Z[b].tolist(), LABELS[b].item()), rel=1e-12)


def test_general_weights_sum_to_1_and_prefer_the_better_network():
    """No other weights that sum to 1 have a smaller error. The scale of the errors does not matter."""
    errors = torch.tensor([[0.1, 0.02, 0.01], [0.02, 0.3, 0.05], [0.01, 0.05, 0.6]], dtype=torch.float64)
    v = general_weights(errors)
    assert v.sum().item() == pytest.approx(1, rel=1e-12) and v[0] > v[1] > v[2]
    for other in torch.eye(3, dtype=torch.float64):
        for step in (-0.1, 0.1):
            moved = v + step * (other - 1 / 3)
            assert moved @ errors @ moved > v @ errors @ v
    for scale in (1e-307, 1e30):
        assert general_weights(scale * errors).tolist() == pytest.approx(v.tolist(), rel=1e-12)


@pytest.mark.parametrize("error", [0.0, 1e-17, 1e-12])
def test_a_network_without_errors_has_all_the_weight(error):
    assert general_weights(torch.diag(torch.tensor([error, 1.0]))).tolist() == pytest.approx([1, 0], abs=1e-6)


@pytest.mark.parametrize("rule", [*TARGETS, "general"])
def test_half_precision_of_the_networks_does_not_reach_the_target(rule):
    model = models.KDCL("resnet8", C, M, rule)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.target(Z.float(), LABELS).dtype == torch.float32
        assert error_products(Z.float().log_softmax(-1), LABELS).dtype == torch.float32


@pytest.mark.parametrize("error", [0.0, 1e-300, 1e-12, 1.0])
def test_equal_networks_have_equal_weights(error):
    """Also where none makes an error."""
    assert general_weights(torch.full((3, 3), error, dtype=torch.float64)).tolist() == pytest.approx([1 / 3] * 3)


def test_the_general_target_has_weights():
    model = models.KDCL("resnet8", C, M, "general").double()
    assert model.target(Z, LABELS).allclose(Z.mean(1))  # before the first epoch ends
    model.set_weights([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 4.0]])
    assert model.v.tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert model.target(Z, LABELS).allclose((4 * Z[:, 0] + 2 * Z[:, 1] + Z[:, 2]) / 7)
    assert "v" in model.state_dict()
