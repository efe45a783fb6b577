import pytest
import torch

from runtime import checkpoints


@pytest.mark.parametrize("change", [
    lambda c: c["state_dict"]["weight"].add_(1), lambda c: c.update(epoch=2), lambda c: c["list"].reverse(),
    lambda c: c.update(state_dict={"weight": c["state_dict"]["weight"].view(3, 2)}), lambda c: c.update(text="a b"),
    lambda c: c.update(state_dict={"weight": c["state_dict"]["weight"].to(torch.int32)}), lambda c: c.pop("epoch"),
    lambda c: c.update(list=[1, [2, 3]])])
def test_the_digest_tells_contents_apart(change):
    def content():
        weight = torch.arange(6, dtype=torch.float32).view(2, 3)
        return {"state_dict": {"weight": weight}, "epoch": 1, "list": [1, 2, 3], "text": "ab"}

    changed = content()
    change(changed)
    assert checkpoints.digest(content()) == checkpoints.digest(content()) != checkpoints.digest(changed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_the_digest_knows_every_bit_of_a_large_tensor(dtype):
    """One in the middle, which is not among the numbers and digits that a printed tensor shows."""
    x = torch.ones(3, 5000).to(dtype)
    before = checkpoints.digest({"x": x})
    x.flatten().view(torch.uint8)[len(x.flatten().view(torch.uint8)) // 2 // x.element_size() * x.element_size()] ^= 1
    assert checkpoints.digest({"x": x}) != before


def test_the_digest_does_not_know_memory_formats():
    x = torch.randn(2, 3, 4, 4)
    assert checkpoints.digest(x) == checkpoints.digest(x.to(memory_format=torch.channels_last))
