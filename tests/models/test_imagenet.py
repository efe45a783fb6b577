import json

import numpy as np
from image_data import IMAGENET_CLASSES, make_imagenet

import train_GL


def test_okddip_on_imagenet(tmp_path):
    root = make_imagenet(tmp_path / "images", train=3, val=2)
    train_GL.main(["--model", "resnet18", "--dataset", "imagenet", "--data_dir", str(root), "--num_branches", "3",
                   "--batch_size", "4", "--num_workers", "0", "--num_epochs", "1", "--val_size", "2", "--device", "cpu",
                   "--save_dir", str(tmp_path)])
    folder = tmp_path / "imagenet" / "OKDDip" / "resnet18"
    parameters = json.loads((folder / "parameters.json").read_text())
    assert parameters["classes"] == IMAGENET_CLASSES and parameters["mean"] == [0.485, 0.456, 0.406]
    (record,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert 0 <= record["stu_test_accTop1"] <= 100 and np.isfinite(record["train_loss"])
