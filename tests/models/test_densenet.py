import pytest
import torch
from image_data import random_images
from torch import Tensor, nn

import models


def train(model: nn.Module, dtype: torch.dtype, autocast: bool = False) -> list[float]:
    """Two steps of SGD with momentum on squared outputs."""
    model.to(dtype).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    losses = []
    for step in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = model(random_images(4, 16, seed=step).to(dtype))
        loss = torch.cat([y.flatten().to(dtype) for y in outputs]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def pair(make) -> list[nn.Module]:
    """The model without and with --efficient, with the same weights."""
    plain, efficient = make(efficient=False), make(efficient=True)
    efficient.load_state_dict(plain.state_dict())
    return [plain, efficient]


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.float64, False), (torch.float32, True)])
def test_efficient_trains_to_the_same_bits(dtype, autocast):
    plain, efficient = pair(lambda **options: models.OKDDip("densenetd40k12", 10, 3, **options))
    start = {name: value.clone() for name, value in plain.state_dict().items()}
    assert train(plain, dtype, autocast) == train(efficient, dtype, autocast)
    ours, theirs = efficient.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys() and all(ours[name].equal(value) for name, value in theirs.items())
    for name, value in ours.items():
        assert not value.equal(start[name].to(value.dtype)), f"{name} did not change"


def test_efficient_keeps_less_for_backward():
    """In evaluation both give the same bits."""
    def kept(model: nn.Module) -> int:
        storages = {}  # keeps the tensors alive, so that no address is used twice

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = model.train()(random_images(2, 16))
        assert logits.requires_grad
        return sum(t.untyped_storage().nbytes() for pointer, t in storages.items() if pointer not in parameters)

    plain, efficient = pair(lambda **o: models.create_model("densenetd100k12", 10, **o))
    assert plain.eval()(random_images(2, 16)).equal(efficient.eval()(random_images(2, 16)))
    assert kept(efficient) < 0.4 * kept(plain)
