"""Classes of image files. tests/test_evaluate.py has the command line."""

import pytest
import torch
from PIL import Image

import data_loader
import models
from deployment.classifying import classify
from deployment.reading import read

CPU = torch.device("cpu")


@pytest.fixture
def pictures(tmp_path):
    """A test image of the digits as PNG files of several kinds, and one large JPEG. -> their paths, the pixels."""
    split = data_loader.digits("").test
    grey = Image.fromarray(split.images[3]).convert("L")
    kinds = {"rgb.png": grey.convert("RGB"), "grey.png": grey, "rgba.png": grey.convert("RGBA"),
             "palette.png": grey.convert("P"),
             "large.jpg": Image.fromarray(split.images[5]).resize((700, 500), Image.Resampling.BILINEAR)}
    for name, image in kinds.items():
        image.save(tmp_path / name)
    return [tmp_path / name for name in kinds], split.images[3]


def test_the_classes_are_those_of_the_network(runs, pictures):
    """Also of more images than a batch has."""
    files, pixels = pictures
    folder = runs / "OKDDip" / "resnet8"
    content = torch.load(folder / "best.pth", weights_only=True)
    group = models.OKDDip("resnet8", 10).eval()
    group.load_state_dict(content["state_dict"])
    x = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - torch.tensor(content["mean"])[:, None, None])
    x = (x / torch.tensor(content["std"])[:, None, None]).unsqueeze(0)
    with torch.no_grad():
        peers, _, leader = group(x)
    for branch, count, batch_size, title, z in ((None, 10, 32, "leader", leader), (3, 99, 2, "leader", leader),
                                                (1, 10, 1, "peer 1", peers[:, 1])):
        result = classify(read(folder, batch_size=batch_size), [str(file) for file in files], CPU, branch, count)
        assert result["network"] == title
        p = z.softmax(-1)[0]
        for image, file in zip(result["images"], files, strict=True):
            assert image["file"] == str(file)
            found = {top["class"]: top["probability"] for top in image["top"]}
            assert sum(found.values()) == pytest.approx(1, abs=1e-5) and len(found) == 10
            if file.name != "large.jpg":  # the same pixels in four kinds of file
                assert [found[str(c)] for c in range(10)] == pytest.approx(p.tolist(), abs=1e-5)
                assert image["top"][0]["class"] == str(p.argmax().item())
