"""Measure a SavedModel: the metrics of the run, calibration error, accuracy per class, speed."""

import statistics
import time
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import data_loader
from deployment.reading import SavedModel
from runtime.device import timed
from runtime.errors import UserError
from training.metrics import evaluate
from training.outputs import WHOLE, mean_titles, metric, student, students_of

BINS = 15  # bins of confidence, as in Guo et al. (2017)


def measure(saved: SavedModel, device: torch.device, branch: int | None = None) -> dict:
    """All metrics on the test images, as ``evaluate.py --json`` prints them. branch: the student that is deployed.

    UserError if the data is missing or does not fit the model.
    """
    flags, output = saved.flags, saved.deployed_output(branch)
    if flags.dataset is None:
        raise UserError(f"{saved.path} does not say which data it is for: name it with --data_dir, --dataset or both")
    loader = data_loader.test_images(flags.dataset, flags.batch_size, flags.num_workers, flags.data_dir,
                                     mean=saved.mean, std=saved.std, device=device, cache=flags.cache == "on",
                                     decoder=flags.decoder, image_size=saved.size)
    saved.check_classes(loader.classes, "name its own data with --dataset and --data_dir")
    saved.move(device)
    metrics = evaluate(saved.method, loader, autocast=saved.autocast(device), more_sums=calibration_and_class_sums)
    outputs = saved.method.outputs
    return {
        "file": str(saved.path), "epoch": saved.epoch, "method": flags.method or "baseline", "model": flags.model,
        "dataset": flags.dataset, "data_dir": flags.data_dir, "images": loader.num_images, "classes": loader.classes,
        "device": str(device), "rows": outputs, "deployed": output,
        "metrics": name_calibration_and_classes(metrics, outputs),
        "speed": measure_speed(saved, output, loader.batch_size, device),
    }


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


# --- speed


@torch.inference_mode()
def measure_speed(saved: SavedModel, output: str | None, batch_size: int, device: torch.device) -> dict:
    """Images per second and parameters of the deployed network alone, and of its group.

    The parameters are None if the file gives no access to them.
    Medians of forward passes of one batch. The two are timed in turns, so that other load on the machine slows both.
    output: what is deployed; None (a group without a leader): the first student is measured.
    """
    images = torch.randn(batch_size, 3, saved.size, saved.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    networks = {"deployed": saved.method.network(student(0) if output is None else output)}
    if output != WHOLE:
        networks["group"] = saved.method.model
    seconds = {name: [] for name in networks}
    start = time.perf_counter()
    while len(seconds["deployed"]) < 4 or len(seconds["deployed"]) < 8 and time.perf_counter() - start < 10:
        for name, network in networks.items():
            with saved.autocast(device):
                seconds[name].append(timed(partial(network, images), device))
    return {"batch_size": batch_size} | {
        name: {"images_per_second": batch_size / statistics.median(seconds[name][1:]),  # the first one warms up
               "parameters": None if saved.external else sum(p.numel() for p in network.parameters())}
        for name, network in networks.items()}


# --- as text


def as_text(result: dict) -> str:
    """The result of ``measure`` as text."""
    metrics, outputs = result["metrics"], result["rows"]
    epoch = f", epoch {result['epoch']}" if result["epoch"] else ""
    means = mean_titles(outputs)
    width = max(20, *(len(title) + 1 for title in (outputs | means).values()))
    lines = [f"{result['file']}: {result['method']}, {result['model']}{epoch}; {result['images']:,} test images of "
             f"{result['dataset']}, on {result['device']}", "",
             f"{'':{width}}{'top-1':>8}{'top-5':>8}{'NLL':>9}{'ECE':>9}"]
    for output, title in outputs.items():
        cells = (metrics[metric(output, "test", name)] for name in ("accTop1", "accTop5", "loss", "ece"))
        lines.append("{:{}}{:8.2f}{:8.2f}{:9.4f}{:9.4f}".format(title, width, *cells))
    for mean, title in means.items():
        top1, top5 = (metrics[metric(mean, "test", name)] for name in ("accTop1", "accTop5"))
        lines.append(f"{title:{width}}{top1:8.2f}{top5:8.2f}")
    if "dist" in metrics:
        lines.append(f"{'diversity':{width}}{metrics['dist']:8.4f}")
    if "attention" in metrics:
        lines += ["", *attention_lines([outputs[peer] for peer in students_of(outputs)], metrics["attention"])]
    return "\n".join([*lines, "", *class_lines(result), "", *speed_lines(result)])


def attention_lines(peers: list[str], attention: list[list[float]]) -> list[str]:
    """The mean attention [m-1, m-1] as text: rows are attending peers, columns are attended ones."""
    return [f"{'attention of, to':20}" + "".join(f"{peer:>9}" for peer in peers),
            *(f"{peer:20}" + "".join(f"{weight:9.4f}" for weight in weights)
              for peer, weights in zip(peers, attention, strict=True))]


def class_lines(result: dict) -> list[str]:
    """Top-1 accuracy of each class as text: of the deployed network and of the ensemble."""
    if len(result["classes"]) > 100:
        return [f"top-1 of each of the {len(result['classes'])} classes: --json"]
    outputs = dict.fromkeys(output for output in (result["deployed"], WHOLE) if output is not None)
    columns = [result["metrics"][metric(output, "test", "accPerClass")] for output in outputs]
    lines = [f"{'top-1 by class':20}" + "".join(f"{result['rows'][output]:>10}" for output in outputs)]
    for name, *values in zip(result["classes"], *columns, strict=True):
        cells = ("-" if value is None else f"{value:.2f}" for value in values)
        lines.append(f"{name:20}" + "".join(f"{cell:>10}" for cell in cells))
    return lines


def speed_lines(result: dict) -> list[str]:
    """Images per second and parameters as text."""
    speed, deployed = dict(result["speed"]), result["deployed"]
    title = f"in batches of {speed.pop('batch_size')}"
    titles = {"deployed": "one student" if deployed is None else result["rows"][deployed], "group": "the group"}
    return [f"{title:20}{'images/s':>10}{'parameters':>13}",
            *(f"{titles[k]:20}{v['images_per_second']:10,.0f}"
              + ("" if v["parameters"] is None else f"{v['parameters']:13,}") for k, v in speed.items())]
