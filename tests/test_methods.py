"""One training step of every valid (network x method x setting): shapes, a finite loss, a gradient for every
parameter, and every student a plain network that gives the group's logits."""

import pytest
import torch

import losses
import models

C, M = 7, 3
LABELS = torch.tensor([0, 3, 6, 3])

OBJECTIVES = {
    "baseline": lambda model, x: losses.individual_loss(model(x), LABELS),
    "KD": lambda model, x: losses.kd_loss(model(x), torch.ones(4, C), LABELS),
    "OKDDip": lambda model, x: losses.okddip_loss(*model(x), LABELS),
    "ONE": lambda model, x: losses.one_loss(*model(x), LABELS),
    "CL": lambda model, x: losses.cl_ilr_loss(*model(x), LABELS),
    "Ind": lambda model, x: losses.individual_loss(model(x), LABELS),
    "DML": lambda model, x: losses.dml_loss(model(x), LABELS),
}


def build(name, method, network_based):
    if method in ("baseline", "KD"):
        return models.create_model(name, C)
    if method == "OKDDip":
        return models.OKDDip(name, C, M, network_based)
    if method == "ONE":
        return models.ONE(name, C, M)
    if method == "CL":
        return models.CLILR(name, C, M, rescale=not network_based, network_based=network_based)
    return models.Branches(name, C, M, network_based)


ONE_SETTING = {"baseline": False, "KD": False, "ONE": False, "DML": True}  # whether it is network-based
SETTINGS = [(method, network_based) for method in OBJECTIVES for network_based in (False, True)
            if ONE_SETTING.get(method, network_based) == network_based]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Two images a step are too few to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", models.NETWORKS)
@pytest.mark.parametrize(("method", "network_based"), SETTINGS)
def test_one_step(name, method, network_based):
    torch.manual_seed(0)
    size = 64 if name in ("resnet18", "resnet34", "resnet50") else 32
    images = torch.randn(4, 3, size, size)
    model = build(name, method, network_based)
    terms = OBJECTIVES[method](model, images)
    assert all(term.shape == () and torch.isfinite(term) for term in terms)
    terms.total.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    if method in ("baseline", "KD"):
        return
    model.eval()
    with torch.no_grad():
        z = model.students([trunk(images) for trunk in model.trunks])[1]
        plain = models.create_model(name, C).eval()
        plain.load_state_dict(model.student(-1).state_dict())
        assert z.shape == (4, M, C)
        assert plain(images).allclose(z[:, -1], rtol=1e-4, atol=1e-4)
