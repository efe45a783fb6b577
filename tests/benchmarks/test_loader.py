import mmap
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import compare, loader
from data_loader import dataloader

CPU = torch.device("cpu")


def test_plain_loader_gives_what_ours_gives():
    data = compare.random_data(40, 0, seed=0)
    torch.manual_seed(0)
    plain = next(iter(loader.pil_pipeline(data, 40, 0, CPU)))  # all images: only crops and flips are random
    ours = next(iter(loader.Cached(data.train, data, 40, CPU, augment=True)))
    for a, b in zip(plain, ours, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert plain[0].mean().item() == pytest.approx(ours[0].mean().item(), abs=0.1)
    assert plain[0].std().item() == pytest.approx(ours[0].std().item(), abs=0.1)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux reports private memory")
def test_private_memory():
    before = loader.private_memory(os.getpid())
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # malloc may reuse memory that the process already has
    with mmap.mmap(-1, 2**26, flags=private) as kept:
        kept[::mmap.PAGESIZE] = b"x" * (len(kept) // mmap.PAGESIZE)
        after = loader.private_memory(os.getpid())
    assert after - before == pytest.approx(2**26, rel=0.1)


def test_loaders_with_several_views_compete(capsys):
    loader.main(["--images", "64", "--plain_images", "32", "--workers", "0", "--repeats", "1", "--views", "3",
                 "--batch_size", "16", "--device", "cpu"])
    printed = capsys.readouterr().out
    for name in ("plain (PIL) ", "cached ", "streamed ", "cached, 3 views ", "streamed, 3 views "):
        assert f"\n{name}" in printed


def test_large_images_compete(capsys):
    loader.main(["--large", "8", "--workers", "0", "--repeats", "1", "--batch_size", "4", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "1 epochs of 8 JPEG files, 0 workers" in printed
    for name in ("plain ", "pil ", "fast ", "fast, uint8 "):
        assert f"\n{name}" in printed


def test_photographs_are_as_large_as_imagenets(tmp_path):
    loader.make_files(tmp_path, 8, seed=0)
    files = list((tmp_path / "train").glob("*/*.jpg"))
    sizes = [Image.open(file).size for file in files]
    assert len(files) == 8 and set(sizes) == {(500, 375), (375, 500), (500, 333)}
    assert 90e3 < sum(file.stat().st_size for file in files) / 8 < 130e3
    plain, ours = (torch.cat([images for images, _ in batches]) for batches in (
        loader.large_pipeline(tmp_path, 4, 0, CPU), dataloader("imagenet", 4, 0, str(tmp_path), decoder="fast")[0]))
    assert plain.shape == ours.shape == (8, 3, 224, 224)
    assert plain.mean().item() == pytest.approx(ours.mean().item(), abs=0.5)
