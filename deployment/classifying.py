"""Classify image files."""

import os
from collections.abc import Sequence

import torch

import data_loader
from deployment.reading import SavedModel
from loading.folders import image_files, warn_of_other_files
from loading.images import DamagedFiles, attempt
from losses import full_precision
from runtime.errors import UserError
from training.outputs import WHOLE


@torch.inference_mode()
def classify(saved: SavedModel, files: Sequence[str], device: torch.device, branch: int | None = None,
             top: int = 5) -> dict:
    """The ``top`` most probable classes of each image file, as ``evaluate.py --images --json`` prints them.

    branch: the student to use; None: the leader, or in a group without one the ensemble. The images are prepared like
    test images. A folder stands for the images in it and below it, sorted. "unreadable" has a sentence about each file
    that is missing or not an image. UserError if no image can be read, or if the logits are not finite.
    """
    found, unreadable = attempt(images_of, files)
    files = [file for images, _ in found for file in images]
    warn_of_other_files([file for _, others in found for file in others])
    output = saved.deployed_output(branch)
    output = WHOLE if output is None else output
    saved.move(device)
    normalise = data_loader.Normalise(saved.mean, saved.std, device)
    batch_size, results = saved.flags.batch_size, []
    for first in range(0, len(files), batch_size):
        loaded, problems = attempt(lambda file: (file, data_loader.load_image(file, saved.size)),
                                   files[first:first + batch_size])
        unreadable += problems
        if not loaded:
            continue
        batch, pixels = zip(*loaded, strict=True)
        pixels = torch.stack(pixels)
        with saved.autocast(device):
            logits = saved.logits(normalise(pixels.to(device)), output)
        if not logits.isfinite().all():
            raise UserError(f"{saved.path} gives logits that are not a number: its weights are damaged, or its "
                            "training diverged")
        best = full_precision(logits).softmax(-1).topk(min(top, len(saved.classes)))
        for file, probabilities, classes in zip(batch, best.values.tolist(), best.indices.tolist(), strict=True):
            results.append({"file": file, "top": [{"class": saved.classes[c], "probability": p}
                                                  for c, p in zip(classes, probabilities, strict=True)]})
    if not results:
        raise DamagedFiles(unreadable)
    return {"file": str(saved.path), "network": saved.method.outputs[output], "images": results,
            "unreadable": unreadable}


def as_text(result: dict) -> str:
    """The result of ``classify`` as text."""
    lines = [f"{result['file']}, {result['network']}"]
    for image in result["images"]:
        lines += ["", image["file"], *(f"{100 * top['probability']:8.2f} %  {top['class']}" for top in image["top"])]
    return "\n".join(lines)


def images_of(path: str) -> tuple[list[str], list[str]]:
    """-> the images at a path, a file or a folder, and the other files of the folder. UserError if it has no image."""
    if not os.path.isdir(path):
        return [path], []
    images, others = image_files(path)
    if not images:
        raise UserError(f"{path} holds no image")
    return sorted(images), others
