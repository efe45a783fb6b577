import pytest
import torch
from PIL import Image

from benchmarks import loader

CPU = torch.device("cpu")


def test_plain_loader_gives_what_ours_gives():
    torch.manual_seed(0)  # all images are in one batch: only crops and flips are random
    loaders = loader.small(loader.parse_args("--images 40 --batch_size 40 --workers 0".split()), CPU)
    plain, *ours = (next(iter(loaders[name])) for name in ("plain (PIL)", "cached", "streamed"))
    for images, labels in ours:
        assert (images.shape, images.dtype, labels.dtype) == (plain[0].shape, plain[0].dtype, plain[1].dtype)
        assert plain[0].mean().item() == pytest.approx(images.mean().item(), abs=0.1)
        assert plain[0].std().item() == pytest.approx(images.std().item(), abs=0.1)


def test_photographs_are_as_large_as_imagenets(tmp_path):
    loaders = loader.large(loader.parse_args("--large 8 --batch_size 4 --workers 0".split()), tmp_path, CPU)
    files = list((tmp_path / "train").glob("*/*.jpg"))
    sizes = [Image.open(file).size for file in files]
    assert len(files) == 8 and set(sizes) == {(500, 375), (375, 500), (500, 333)}
    assert 90e3 < sum(file.stat().st_size for file in files) / 8 < 130e3
    plain, ours = (torch.cat([images for images, _ in loaders[name]]) for name in ("plain (PIL)", "fast"))
    assert plain.shape == ours.shape == (8, 3, 224, 224)
    assert plain.mean().item() == pytest.approx(ours.mean().item(), abs=0.5)
