"""Which files in folders are images, and of which class."""

import os
import re

import pytest
from PIL import Image
from torchvision import datasets

from data_loader import DATASETS, dataloader
from data_loader import test_images as images_to_test
from runtime.errors import UserError


def put(root, *names):
    """A small image at each of these paths."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((8, 8), 50).save(root / name, "PNG")
    return root


def in_classes(root, *names):
    """Small images of two classes, for training and testing."""
    return put(root, *(f"{part}/{label}/{name}" for part in ("train", "test") for label in "ab" for name in names))


def files(split):
    return [os.fsdecode(path) for path in split.images]


def listed(root):
    return DATASETS["folder"].load(root)


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_hidden_folders_are_left_out(tmp_path, name, capsys):
    """As a class, in a class, deeper, and with a link in them that leads back."""
    root = in_classes(tmp_path / ".cache" / "data", "1.png", "deep/er/2.png")  # the data itself may be in a hidden one
    for part in ("train", "test"):
        put(root / part, ".ipynb_checkpoints/1-checkpoint.png", "a/.cache/1.png", "a/deep/.cache/more/1.png",
            "b/.ipynb_checkpoints/x.png", "b/._1.png", "__MACOSX/a/1.png", "a/@eaDir/thumbnail.png", "lost+found/1.png")
        (root / part / "a" / ".cache" / "link").symlink_to("../..")
        (root / part / ".lost").symlink_to("nowhere")
    train, test = dataloader(name, 2, 0, root)
    assert train.classes == test.classes == ["a", "b"] and (train.num_images, test.num_images) == (4, 4)
    assert files(listed(root).train) == [f"{root}/train/{x}" for x in ("a/1.png", "a/deep/er/2.png", "b/1.png",
                                                                      "b/deep/er/2.png")]
    assert capsys.readouterr().err == ""


def test_visible_links_into_hidden_folders_are_followed(tmp_path):
    """Tools for large files keep them in a hidden folder."""
    root = in_classes(tmp_path, "1.png")
    put(root / ".store", "17.png", "folder/18.png", "class/19.png")
    for part in ("train", "test"):
        (root / part / "a" / "2.png").symlink_to(root / ".store" / "17.png")
        (root / part / "a" / "more").symlink_to(root / ".store" / "folder")
        (root / part / "c").symlink_to(root / ".store" / "class")
    found = listed(root)
    assert found.classes == ["a", "b", "c"] and found.train.labels.tolist() == [0, 0, 0, 1, 2]
    assert found.train.labels.dtype == "int64" and files(found.train)[2].endswith("train/a/more/18.png")


def test_the_order_is_torchvisions(tmp_path):
    root = in_classes(tmp_path, "z.png", "B.png", "x/1.png", "x-y/2.png", "x/y/3.png", "ä.png", "10.png", "9.png")
    expected = datasets.ImageFolder(root / "train")
    split = listed(root).train
    assert list(zip(files(split), split.labels.tolist(), strict=True)) == expected.samples


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_files_that_are_no_images_by_their_names_are_left_out(tmp_path, name, capsys):
    """Tiny ImageNet's layout, and what operating systems and people leave in folders. They are counted in one line."""
    root = in_classes(tmp_path, "images/1.JPEG", "images/2.jpg", "3.TiFf", "no ending")
    for part, other in (("train", "a/a_boxes.txt"), ("train", "b/b_boxes.txt"), ("train", "b/Thumbs.db"),
                        ("test", "b/deep/labels.csv"), ("test", "a/about.pdf"), ("train", "b/README"),
                        ("train", "a/features.h5")):
        (root / part / other).parent.mkdir(exist_ok=True)
        (root / part / other).write_text("no image")
    train, test = dataloader(name, 2, 0, root)
    assert (train.num_images, test.num_images) == (8, 8) and len(list(train)) == 4
    warning = f"warning: left out, not an image by its name: {root}"
    assert capsys.readouterr().err == f"{warning}/train/a/a_boxes.txt and 6 more\n"
    (root / "test" / "a" / "about.pdf").unlink()
    images_to_test(name, 2, 0, root, mean=train.mean, std=train.std)
    assert capsys.readouterr().err == f"{warning}/test/b/deep/labels.csv\n"


@pytest.mark.parametrize("name", ["x.png", "X.JPEG", "x.heic", "x.tif", "x.webp", "photo"])
def test_a_file_that_should_be_an_image_must_be_one(tmp_path, name):
    root = in_classes(tmp_path, "1.png")
    (root / "test" / "b" / name).write_text("P1 no image")  # it begins as a PBM file
    with pytest.raises(UserError, match=f"^{root}/test/b/{name} does not decode as an image: "):
        dataloader("folder", 2, 0, root)


def test_empty_class_folders_are_named(tmp_path):
    root = in_classes(tmp_path, "1.png")
    (root / "test" / "b" / "1.png").unlink()
    with pytest.raises(UserError, match=f"^{root}/test/b holds no image$"):
        dataloader("folder", 2, 0, root)
    (root / "train" / "b" / "1.png").rename(root / "train" / "b" / "1.txt")
    put(root / "train" / "b" / ".hidden", "1.png")
    problems = (f"{root}/train/b holds no image ({root}/train/b/1.txt is not one by its name); "
                f"{root}/test/b holds no image")
    with pytest.raises(UserError, match=f"^2 .* cannot be used: {re.escape(problems)}$"):
        dataloader("imagenet", 2, 0, root)


BACK = "a folder above itself .*: remove the link"


def test_a_link_in_place_of_the_test_images_must_lead_to_them(tmp_path):
    """Else val/ would become the test images."""
    root = in_classes(tmp_path, "1.png")
    (root / "test").rename(root / "val")
    (root / "test").symlink_to("/nowhere")
    with pytest.raises(UserError, match=f"^{root}/test is a link to /nowhere, which does not exist"):
        dataloader("folder", 2, 0, root)


@pytest.mark.parametrize(("place", "target", "said"), [
    ("c", "../../moved/c", "test/c is a link to .*/moved/c, which does not exist"),
    ("c", ".", "train/c is a link to " + BACK),
    ("a/x", ".", "train/a/x is a link to " + BACK), ("a/x", "../..", "train/a/x is a link to " + BACK),
    ("a/x", "../../../elsewhere", "train/a/x/back is a link to " + BACK)])
def test_links_to_nowhere_and_back_are_named(tmp_path, place, target, said):
    """A class would be missing without a word. The last one leads out of the data, and from there back into it."""
    root = in_classes(tmp_path / "data", "1.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "back").symlink_to(root / "train")
    for part in ("train", "test"):
        (root / part / place).symlink_to(target)
    with pytest.raises(UserError, match=said) as error:
        dataloader("folder", 2, 0, root)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_images_without_labels_are_not_test_images(tmp_path, name, capsys):
    """ImageNet's own test/ has no class folders. A warning says that it is not used."""
    root = in_classes(tmp_path, "1.png", "2.png")
    (root / "test").rename(root / "val")
    put(root / "test", "1.png", ".hidden/1.png")
    train, test = dataloader(name, 2, 0, root)
    assert train.held_out is None and test.num_images == 4
    assert capsys.readouterr().err == f"warning: {root}/test has no class folders and is not used\n"


def test_folders_that_hold_no_classes(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/1.png", "test/1.png")
    with pytest.raises(UserError, match="test holds no folder: it must hold one for each class"):
        dataloader("folder", 2, 0, tmp_path)


def test_the_classes_of_val_must_be_those_of_train(tmp_path):
    """At most ten of them are named."""
    root = in_classes(tmp_path, "1.png")
    put(root / "val", *(f"{label}/1.png" for label in ["a", "b", *(f"c{i:02}" for i in range(12))]))
    named = ", ".join(f"c{i:02}" for i in range(10))
    with pytest.raises(UserError, match=f"train and .*/val must hold the same classes; .* has {named}, 2 more$"):
        dataloader("folder", 2, 0, root)
