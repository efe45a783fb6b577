import math

import pytest
import torch
from network_data import random_images
from torch import Tensor, nn

import models


def test_weights_of_a_branch_based_group():
    m, trunk, head = 3, 115_848, 60_274
    assert trunk + head == 176_122
    group = models.OKDDip("densenetd40k12", 10, m)
    assert sum(p.numel() for p in group.trunks.parameters()) == trunk
    assert sum(p.numel() for p in group.parameters()) == trunk + m * head + 2 * 132 * (132 // 8)


def test_every_branch_owns_its_last_stage():
    group = models.Branches("densenetd40k12", 10, 3).eval()
    parameters = [{id(p) for p in head.parameters()} for head in group.heads]
    assert not parameters[0] & parameters[1] and not parameters[1] & parameters[2]
    with torch.no_grad():
        before = group(random_images(2))
        group.heads[1].features.denseblock3.denselayer1.conv2.weight.mul_(2)
        changed = (group(random_images(2)) != before).any(-1).any(0)
    assert changed.tolist() == [False, True, False]


def test_linears_start_with_pytorchs_default_and_classifiers_without_bias():
    torch.manual_seed(0)
    one, okddip = models.ONE("densenetd40k12", 10, 3), models.OKDDip("densenetd40k12", 10, 3)
    assert all(not head.classifier.bias.any() for head in [*one.heads, *okddip.heads])
    assert one.gate.linear.bias.all()
    for m in (one.heads[0].classifier, one.gate.linear, okddip.aggregation.W_L, okddip.aggregation.W_E):
        bound = 1 / math.sqrt(m.in_features)  # uniform between -bound and bound
        assert m.weight.abs().max() <= bound
        assert m.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)


# --- efficient


def train(model: nn.Module, outputs, steps: int, dtype: torch.dtype) -> list[float]:
    """SGD with momentum on squared outputs; outputs(images) -> tensor."""
    model.to(dtype).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    losses = []
    for step in range(steps):
        loss = outputs(random_images(4, 16, seed=step).to(dtype)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_same(a: nn.Module, b: nn.Module):
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, different


def pair(make) -> list[nn.Module]:
    """The model without and with --efficient, with the same weights."""
    plain, efficient = make(efficient=False), make(efficient=True)
    efficient.load_state_dict(plain.state_dict())
    return [plain, efficient]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_efficient_trains_to_the_same_bits(dtype):
    steps = 3
    plain, efficient = pair(lambda **options: models.OKDDip("densenetd40k12", 10, 3, **options))
    start = {name: value.clone() for name, value in plain.state_dict().items()}
    runs = [train(m, lambda x, m=m: torch.cat([y.flatten() for y in m(x)]), steps, dtype) for m in (plain, efficient)]
    assert runs[0] == runs[1]
    assert_same(plain, efficient)
    for name, value in efficient.state_dict().items():
        if not name.endswith("num_batches_tracked"):  # counted when they are saved, not in forward
            assert not torch.equal(value, start[name].to(dtype)), f"{name} did not change"


def test_efficient_counts_statistics_once():
    """Backward changes neither the running statistics nor the counter, and does not replace a buffer."""
    network = models.create_model("densenetd40k12", 10, efficient=True).train()
    loss = network(random_images(4, 16)).sum()
    buffers = {name: (buffer, buffer.clone()) for name, buffer in network.named_buffers()}
    loss.backward()
    for name, buffer in network.named_buffers():
        assert buffer is buffers[name][0] and torch.equal(buffer, buffers[name][1]), name


def test_efficient_under_autocast():
    def outputs(model, x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float()

    plain, efficient = pair(lambda **options: models.create_model("densenetd40k12", 10, **options))
    runs = [train(m, lambda x, m=m: outputs(m, x), 2, torch.float32) for m in (plain, efficient)]
    assert runs[0] == runs[1]
    assert_same(plain, efficient)


def test_efficient_keeps_less_for_backward():
    def kept(model: nn.Module) -> int:
        storages = {}  # keeps the tensors alive, so that no address is used twice

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = model.train()(random_images(4))
        assert logits.requires_grad
        return sum(t.untyped_storage().nbytes() for pointer, t in storages.items() if pointer not in parameters)

    plain, efficient = (kept(m) for m in pair(lambda **o: models.create_model("densenetd100k12", 10, **o)))
    assert efficient < 0.4 * plain


def test_efficient_in_eval_mode():
    plain, efficient = pair(lambda **options: models.create_model("densenetd40k12", 10, **options))
    with torch.no_grad():
        assert torch.equal(plain.eval()(random_images(2)), efficient.eval()(random_images(2)))
