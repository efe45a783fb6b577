"""Classify image files."""

from collections.abc import Sequence

import torch

import data_loader
from deployment.saved_model import SavedModel
from losses import full_precision
from runtime.errors import UserError
from training.outputs import ENSEMBLE


@torch.inference_mode()
def classify(saved: SavedModel, files: Sequence[str], device: torch.device, branch: int | None = None,
             top: int = 5) -> dict:
    """The ``top`` most probable classes of each image file, as ``evaluate.py --images --json`` prints them.

    branch: the student that answers; None: the leader, in a group without a leader the ensemble. The images are
    prepared like test images. UserError if a file is not an image, or the logits are not finite.
    """
    output = saved.deployed_output(branch)
    output = ENSEMBLE if output is None else output
    saved.move(device)
    normalise = data_loader.Normalise(saved.mean, saved.std, device)
    batch_size, results = saved.flags.batch_size, []
    for first in range(0, len(files), batch_size):
        batch = files[first:first + batch_size]
        pixels = torch.stack([data_loader.load_image(file, saved.size == 224) for file in batch])
        with saved.autocast(device):
            logits = saved.logits(normalise(pixels.to(device)), output)
        if not logits.isfinite().all():
            raise UserError(f"{saved.path} gives logits that are not a number: its weights are damaged, or its "
                            "training diverged")
        best = full_precision(logits).softmax(-1).topk(min(top, len(saved.classes)))
        for file, probabilities, classes in zip(batch, best.values.tolist(), best.indices.tolist(), strict=True):
            results.append({"file": file, "top": [{"class": saved.classes[c], "probability": p}
                                                  for c, p in zip(classes, probabilities, strict=True)]})
    return {"file": str(saved.path), "network": saved.method.outputs[output], "images": results}
