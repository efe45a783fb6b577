"""Measure a SavedModel on test images: the metrics of the run, calibration error, accuracy per class, speed."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

import data_loader
from deployment.saved_model import SavedModel, image_size
from deployment.speed import measure_speed
from runtime.errors import UserError
from training.metrics import evaluate
from training.outputs import metric

BINS = 15  # bins of confidence, as in Guo et al. (2017)


def measure(saved: SavedModel, device: torch.device, branch: int | None = None) -> dict:
    """All metrics on the test images, as ``evaluate.py --json`` prints them. branch: the student that is deployed.

    UserError if the data is missing or does not fit the model.
    """
    flags, output = saved.flags, saved.deployed_output(branch)
    if flags.dataset is None:
        raise UserError(f"{saved.path} does not say which data it is for: name it with --data_dir, --dataset or both")
    if image_size(flags.dataset) != saved.size:
        raise UserError(f"{saved.path} takes images of {saved.size}x{saved.size} pixels, but --dataset {flags.dataset} "
                        "has another size. For your own class folders: folder is 32x32, imagenet is 224x224")
    loader = data_loader.test_images(flags.dataset, flags.batch_size, flags.num_workers, flags.data_dir,
                                     mean=saved.mean, std=saved.std, device=device, cache=flags.cache == "on",
                                     decoder=flags.decoder)
    check_classes(saved, loader.classes)
    saved.move(device)
    metrics = evaluate(saved.method, loader, autocast=saved.autocast(device), more_sums=calibration_and_class_sums)
    outputs = saved.method.outputs
    return {
        "file": str(saved.path), "epoch": saved.epoch, "method": flags.method or "baseline", "model": flags.model,
        "dataset": flags.dataset, "data_dir": flags.data_dir, "images": loader.num_images, "classes": loader.classes,
        "device": str(device), "rows": outputs, "deployed": output,
        "figures": name_calibration_and_classes(metrics, outputs),
        "speed": measure_speed(saved, output, loader.batch_size, device),
    }


def check_classes(saved: SavedModel, classes: list[str]) -> None:
    """UserError if the classes of the data are not those of the model."""
    data = f"--dataset {saved.flags.dataset} in {saved.flags.data_dir}"
    if len(classes) != len(saved.classes):
        raise UserError(f"{saved.path} has {len(saved.classes)} classes, but {data} has {len(classes)}: name the data "
                        "that it was trained on with --dataset and --data_dir")
    different = [f"{a} there, {b} here" for a, b in zip(saved.classes, classes, strict=True) if a != b]
    if saved.named and different:
        raise UserError(f"{saved.path} was trained on other classes than those of {data} "
                        f"({'; '.join(different[:5])}): name its own data with --dataset and --data_dir")


def calibration_and_class_sums(log_p: Tensor, top1: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Sums over a batch, for the calibration error and the accuracy per class.

    log_p [B, R, C]; top1 [B, R], whether the label is the first class; labels [B] -> gaps [R, BINS]: top1 minus
    confidence, summed over the images in each bin ((k - 1) / BINS, k / BINS] of confidence; class_correct [R, C];
    class_images [C].
    """
    confidence = log_p.exp().amax(-1).double()  # [B, R]; a NaN makes the error NaN
    bins = F.one_hot((confidence.nan_to_num() * BINS).ceil().long().clamp(1, BINS) - 1, BINS)  # [B, R, BINS]
    classes = F.one_hot(labels, log_p.shape[-1]).double()  # [B, C]
    top1 = top1.double()
    return {"gaps": ((top1 - confidence).unsqueeze(-1) * bins).sum(0), "class_correct": top1.mT @ classes,
            "class_images": classes.sum(0)}


def name_calibration_and_classes(metrics: dict, outputs: Iterable[str]) -> dict:
    """Replace the means of ``calibration_and_class_sums`` in ``metrics`` by ece and accPerClass of each output.

    ECE = sum over bins of (the bin's share of the images) |accuracy - confidence in the bin| (Guo et al., "On
    calibration of modern neural networks", ICML 2017, equation 3). Each term is |the mean of the bin's gaps|, a mean
    over all images.
    """
    gaps, correct, images = (metrics.pop(name) for name in ("gaps", "class_correct", "class_images"))
    for output, output_gaps, output_correct in zip(outputs, gaps, correct, strict=True):
        metrics[metric(output, "test", "ece")] = sum(map(abs, output_gaps))
        metrics[metric(output, "test", "accPerClass")] = [100 * c / n if n else None
                                                          for c, n in zip(output_correct, images, strict=True)]
    return metrics
