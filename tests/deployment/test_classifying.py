"""Classes of image files."""

import pytest
import torch
from PIL import Image

import models
from deployment.classifying import classify
from deployment.reading import read

CPU = torch.device("cpu")


def test_the_classes_are_those_of_the_network(runs, pictures):
    files, pixels = pictures
    folder = runs / "OKDDip" / "resnet8"
    content = torch.load(folder / "best.pth", weights_only=True)
    group = models.OKDDip("resnet8", 10).eval()
    group.load_state_dict(content["state_dict"])
    x = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - torch.tensor(content["mean"])[:, None, None])
    x = (x / torch.tensor(content["std"])[:, None, None]).unsqueeze(0)
    with torch.no_grad():
        peers, _, leader = group(x)
    for branch, count, title, z in ((None, 10, "leader", leader), (3, 99, "leader", leader),
                                    (1, 10, "peer 1", peers[:, 1])):
        result = classify(read(folder), [str(file) for file in files], CPU, branch, count)
        assert result["network"] == title
        p = z.softmax(-1)[0]
        for image, file in zip(result["images"], files, strict=True):
            assert image["file"] == str(file)
            found = {top["class"]: top["probability"] for top in image["top"]}
            assert sum(found.values()) == pytest.approx(1, abs=1e-5) and len(found) == 10
            if file.name != "large.jpg":  # the same pixels in four kinds of file
                assert [found[str(c)] for c in range(10)] == pytest.approx(p.tolist(), abs=1e-5)
                assert image["top"][0]["class"] == str(p.argmax().item())


def test_more_images_than_a_batch(runs, pictures):
    files = [str(file) for file in pictures[0]]
    whole, parts = (classify(read(runs / "OKDDip" / "resnet8", batch_size=size), files, CPU) for size in (128, 2))
    assert [image["file"] for image in parts["images"]] == files
    for a, b in zip(whole["images"], parts["images"], strict=True):
        assert [top["class"] for top in a["top"]] == [top["class"] for top in b["top"]]


def test_the_orientation_of_a_photograph_counts(runs, pictures, tmp_path):
    image = Image.open(pictures[0][0])
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    files = [str(pictures[0][0]), str(tmp_path / "turned.png")]
    upright, turned = classify(read(runs / "resnet8"), files, CPU)["images"]
    assert upright["top"] == turned["top"]


def test_without_a_leader_the_ensemble_answers(runs, pictures):
    result = classify(read(runs / "ONE" / "resnet8"), [str(pictures[0][0])], CPU)
    assert result["network"] == "ensemble"
