"""The images of a loader are those of torchvision's transforms, bit for bit."""

import numpy as np
import pytest
import torch
from image_data import IMAGENET_CLASSES, MEAN, STD, all_batches, imagenet_files, make_imagenet, random_data
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as TF
from torchvision.transforms import v2

from data_loader import DATASETS, Cached, dataloader
from loading.augmentation import augmentation_parameters, preparation


def test_crops_and_flips_are_uniform():
    """All 9 rows and 9 columns equally often, half of the images flipped."""
    _, top, left, flips = augmentation_parameters(9000, seed=0, epoch=0, flip=True)
    for corner in (top, left):
        assert np.bincount(corner.flatten().numpy(), minlength=9) == pytest.approx([1000] * 9, abs=150)
    places = np.bincount((9 * top + left).flatten().numpy(), minlength=81)  # each row with each column
    assert places == pytest.approx([9000 / 81] * 81, abs=60)
    assert flips.float().mean().item() == pytest.approx(0.5, abs=0.03)
    _, top, left, _ = augmentation_parameters(2000, 0, 0, True, size=64)  # a border of 8
    assert top.unique().tolist() == left.unique().tolist() == list(range(17))


def test_augmentation_is_torchvisions():
    """With the same parameters: pad, crop, flip, to_tensor, normalize on PIL images, one at a time.

    Three views of each image, each cropped and flipped by its own parameters; the first is that of one view.
    """
    data = random_data(60)
    one, three = (Cached(data.train, data, 16, torch.device("cpu"), seed=1, augment=True, views=v) for v in (1, 3))
    for loader in (one, three):
        loader.set_epoch(3)
    images, labels = all_batches(three)
    order, *parameters = three.augmentation_parameters()
    assert order.equal(augmentation_parameters(60, 1, 3, True)[0]) and sorted(order.tolist()) == list(range(60))
    assert images.shape == (60, 3, 3, 32, 32) and labels.equal(order)
    assert all(p.shape == (60, 3) for p in parameters)
    for n, index in enumerate(order.tolist()):
        for v in range(3):
            top, left, flip = (p[n, v].item() for p in parameters)
            image = TF.crop(TF.pad(Image.fromarray(data.train.images[index]), 4), top, left, 32, 32)
            image = TF.hflip(image) if flip else image
            assert images[n, v].equal(TF.normalize(TF.to_tensor(image), MEAN, STD))
    same = [(a[:, 0] == a[:, 1]).float().mean().item() for a in parameters]
    assert same == pytest.approx([1 / 9, 1 / 9, 1 / 2], abs=0.2)  # the views are independent
    assert images[:, 0].equal(all_batches(one)[0])


@pytest.mark.parametrize("size", [32, 224])
def test_every_seed_and_epoch_draws_its_own(size):
    """Epoch 1 of seed 0 is not epoch 0 of seed 1: runs of several seeds would show the same images in turn."""
    drawn = [augmentation_parameters(50, seed, epoch, flip=True, size=size)
             for seed in range(4) for epoch in range(4)]
    for parameters in zip(*drawn, strict=True):
        assert len({tuple(values.flatten().tolist()) for values in parameters}) == 16
    again = augmentation_parameters(50, 1, 2, flip=True, size=size)
    assert all(a.equal(b) for a, b in zip(drawn[6], again, strict=True))


def test_evaluation_images_are_torchvisions():
    data = random_data(20)
    images, labels = all_batches(Cached(data.test, data, 8, torch.device("cpu")))
    assert labels.tolist() == list(range(20))
    for pixels, image in zip(data.test.images, images, strict=True):
        assert image.equal(TF.normalize(TF.to_tensor(Image.fromarray(pixels)), MEAN, STD))


# --- ImageNet

IMAGENET = DATASETS["imagenet"]
TO_TENSOR = transforms.Compose([transforms.ToTensor(), transforms.Normalize(IMAGENET.mean, IMAGENET.std)])
EVALUATED = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), TO_TENSOR])


@pytest.fixture
def root(tmp_path):
    return make_imagenet(tmp_path / "images")


def opened(file):
    return Image.open(file).convert("RGB")


def assert_torchvisions(images, expected, decoder):
    """Equal; with --decoder fast, within the tolerance that docs/speed.md states, in grey levels of 0 to 255."""
    assert images.equal(expected) == (decoder == "pil")
    levels = 255 * torch.tensor(IMAGENET.std).view(3, 1, 1)
    for difference in (images - expected).abs() * levels:
        assert difference.max() < 2.01 and difference.mean() < 0.3


def test_other_sizes_are_cropped_in_the_same_proportion(root):
    image = opened(imagenet_files(root, "val")[0])
    expected = transforms.CenterCrop(96)(transforms.Resize(109)(image))  # int(256 / 224 * 96)
    assert np.array_equal(preparation(96)(np.array(image))[0], expected)


@pytest.mark.parametrize("decoder", ["pil", "fast"])
def test_imagenet_evaluation_images_are_torchvisions(root, decoder):
    """Test images, and held-out ones."""
    train, test = dataloader("imagenet", 4, 0, root, seed=2, val_size=4, decoder=decoder)
    assert (train.num_images, train.held_out.num_images, test.num_images) == (8, 4, 6)
    assert (train.mean, train.std, test.classes) == (
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), IMAGENET_CLASSES)
    images, labels = all_batches(test)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1] and images.dtype == torch.float32
    assert_torchvisions(images, torch.stack([EVALUATED(opened(file)) for file in imagenet_files(root, "val")]), decoder)
    (images, labels), = train.held_out
    assert labels.tolist() == [0, 0, 1, 1]
    candidates = [EVALUATED(opened(file)) for file in imagenet_files(root, "train")]
    closest = [min(candidates, key=lambda c, image=image: (image - c).abs().sum()) for image in images]
    assert_torchvisions(images, torch.stack(closest), decoder)


@pytest.mark.parametrize(("views", "workers", "decoder"), [(1, 0, "pil"), (2, 1, "pil"), (2, 1, "fast")])
def test_imagenet_training_images_are_torchvisions(root, views, workers, decoder):
    """Each view is made by the usual transforms, after its own seed."""
    train, _ = dataloader("imagenet", 4, workers, root, seed=2, views=views, decoder=decoder)
    order, seeds = train.augmentation_parameters()
    transform = transforms.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), TO_TENSOR])
    files, expected = imagenet_files(root, "train"), []
    for index, seeds_of_image in zip(order.tolist(), seeds.tolist(), strict=True):
        for seed in seeds_of_image:
            torch.manual_seed(seed)
            expected.append(transform(opened(files[index])))
    images, labels = all_batches(train)
    assert labels.tolist() == [index // 6 for index in order.tolist()]
    assert_torchvisions(images.flatten(0, -4), torch.stack(expected), decoder)
    train.close()
