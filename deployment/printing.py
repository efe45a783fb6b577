"""Results as text for people. ``evaluate.py --json`` prints the same results as JSON instead."""

from training.outputs import WHOLE, mean_titles, metric, students_of


def table(result: dict) -> str:
    """The result of ``measure`` as text."""
    metrics, outputs = result["figures"], result["rows"]
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
    """The mean attention [m-1, m-1] as text: lines are peers that attend, columns are peers that are attended to."""
    return [f"{'attention of, to':20}" + "".join(f"{peer:>9}" for peer in peers),
            *(f"{peer:20}" + "".join(f"{weight:9.4f}" for weight in weights)
              for peer, weights in zip(peers, attention, strict=True))]


def class_lines(result: dict) -> list[str]:
    """Top-1 accuracy of each class as text: of the deployed network and of the ensemble."""
    if len(result["classes"]) > 100:
        return [f"top-1 of each of the {len(result['classes'])} classes: --json"]
    outputs = dict.fromkeys(output for output in (result["deployed"], WHOLE) if output is not None)
    columns = [result["figures"][metric(output, "test", "accPerClass")] for output in outputs]
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
            *(f"{titles[k]:20}{v['images_per_second']:10,.0f}{v['parameters']:13,}" for k, v in speed.items())]


def classes_of_images(result: dict) -> str:
    """The result of ``classify`` as text."""
    lines = [f"{result['file']}, {result['network']}"]
    for image in result["images"]:
        lines += ["", image["file"], *(f"{100 * top['probability']:8.2f} %  {top['class']}" for top in image["top"])]
    return "\n".join(lines)


def exported_file(result: dict) -> str:
    """The result of ``export_model`` as text."""
    return (f"{result['file']}: {result['network']} of {result['of']}, {result['model']}, {result['bytes']:,} bytes; "
            f"logits on {result['compared_on']} differ from the run's by at most {result['largest_difference']:.1e}")
