import io
import math
import random
import zipfile

import pytest
import torch

from runtime import checkpoints
from runtime.errors import UserError


def test_the_digest_knows_shapes_types_and_names():
    x = torch.arange(6)
    contents = [x, x.view(2, 3), x.view(3, 2), x.to(torch.int32), x.tolist(), [1, [2, 3]], [[1, 2], 3], [1], [True],
                ["1"], [None], [1.0], [math.nextafter(1, 2)], {"a": 1}, {"b": 1}, ["a", 1], {}, []]
    digests = [checkpoints.digest({"inner": [content, 0]}) for content in contents]
    assert len(set(digests)) == len(contents) - 1 and digests[-1] == digests[-2]  # two that are empty look the same


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_the_digest_knows_every_bit_of_a_large_tensor(dtype):
    """One in the middle, which is not among the numbers and digits that a printed tensor shows."""
    x = torch.ones(3, 5000).to(dtype)
    before = checkpoints.digest({"x": x})
    x.flatten().view(torch.uint8)[len(x.flatten().view(torch.uint8)) // 2 // x.element_size() * x.element_size()] ^= 1
    assert checkpoints.digest({"x": x}) != before


def test_the_digest_does_not_know_memory_formats():
    x = torch.randn(2, 3, 4, 4)
    assert checkpoints.digest(x) == checkpoints.digest(x.to(memory_format=torch.channels_last))


def test_a_damaged_checkpoint_gives_the_right_weights_or_a_sentence(tmp_path):
    """Cut at 20 lengths, and with each of 60 bits flipped."""
    content, rng = {"format": 2, "state_dict": {"weight": torch.randn(20, 20)}}, random.Random(0)
    whole, path = checkpoints.serialise(content), tmp_path / "x.pth"
    damaged = [whole[:rng.randrange(len(whole))] for _ in range(20)]
    for place in (rng.randrange(len(whole)) for _ in range(60)):
        damaged.append(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1:])
    refused = 0
    for changed in damaged:
        path.write_bytes(changed)
        try:
            assert checkpoints.digest(checkpoints.load_checkpoint(path)) == checkpoints.digest(content)
        except UserError as error:
            refused += "damaged" in str(error)
    assert refused >= 50  # a cut one never passes


def test_a_gpus_checkpoint_opens_without_one(tmp_path):
    """Those of the authors' code hold tensors of the GPU. Here the name of the device is changed in the file."""
    torch.save({"weight": torch.ones(2)}, tmp_path / "cpu.pth")
    with zipfile.ZipFile(tmp_path / "cpu.pth") as cpu, zipfile.ZipFile(tmp_path / "gpu.pth", "w") as gpu:
        for name in cpu.namelist():
            gpu.writestr(name, cpu.read(name).replace(b"\x03\x00\x00\x00cpu", b"\x06\x00\x00\x00cuda:0"))
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(tmp_path / "gpu.pth", weights_only=True)
    weight = checkpoints.load_checkpoint(tmp_path / "gpu.pth")["weight"]
    assert weight.device == torch.device("cpu") and weight.tolist() == [1, 1]


def change_nested(content):
    content["inner"]["list"][1][0] += 1


@pytest.mark.parametrize("ours", [{"format": 2}, {}])
@pytest.mark.parametrize("change", [change_nested, lambda c: c.update(digest="0" * 64), lambda c: c.pop("digest"),
                                    lambda c: c.update(more=1)])
def test_a_changed_checkpoint_is_refused(change, ours, tmp_path):
    """Only a file without a format, which is no run's, may be without a digest."""
    content = torch.load(io.BytesIO(checkpoints.serialise({**ours, "inner": {"list": [1, [2, 3]]}})), weights_only=True)
    change(content)
    torch.save(content, tmp_path / "x.pth")
    if not ours and "digest" not in content:
        assert checkpoints.load_checkpoint(tmp_path / "x.pth") == content
        return
    with pytest.raises(UserError, match="x.pth is damaged: its content is not what was saved .the digest differs"):
        checkpoints.load_checkpoint(tmp_path / "x.pth")


class Harm:
    """A pickle of it creates a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(("kind", "said"), [
    ("folder", "cannot be read: Is a directory"), ("code", "not a checkpoint that can be loaded safely")])
def test_what_is_no_checkpoint_is_named(kind, said, tmp_path):
    path = tmp_path / "x.pth"
    if kind == "folder":
        path.mkdir()
    else:
        torch.save({"state_dict": Harm(tmp_path / "harm")}, path)
    with pytest.raises(UserError, match=said):
        checkpoints.load_checkpoint(path)
    assert not (tmp_path / "harm").exists()
