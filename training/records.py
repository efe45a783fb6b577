"""What a run writes and prints: parameters, a line for each epoch, curves, summary, log and progress."""

import json
import logging
import math
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from runtime import processes
from runtime.files import as_json, save
from training.folder import remove_curves
from training.method import Method
from training.outputs import MEAN, TENSORBOARD_FOLDERS, WHOLE, mean_titles, metric, parse, student

log = logging.getLogger("okddip")


class Records:
    """parameters.json, metrics.jsonl, summary.json and TensorBoard's curves. Only the first process writes.

    outputs: those that are measured. history: the records of all epochs so far, shared with the loop.
    """

    def __init__(self, folder: Path, outputs: dict[str, str], history: list[dict], parameters: dict, best: dict | None):
        self.folder, self.history, self.writers = folder, history, {}
        processes.on_main(lambda: self.start(outputs, parameters, best))

    def start(self, outputs: dict[str, str], parameters: dict, best: dict | None) -> None:
        """Write parameters.json, and the records and curves of the epochs before a resume again.

        best: the record in best.pth. Its JSON file and metrics.jsonl may be missing after a kill.
        """
        from torch.utils.tensorboard import SummaryWriter

        files = {"parameters.json": as_json(parameters)}
        if self.history:
            files["metrics.jsonl"] = self.json_lines()
        if best is not None:
            files["test_best_metrics.json"] = as_json(best)
        save({self.folder / name: content for name, content in files.items()})
        remove_curves(self.folder)  # drawn again from the history: no epoch twice, none missing
        self.writers = {output: SummaryWriter(self.folder / name) for output, name in TENSORBOARD_FOLDERS.items()
                        if output in {WHOLE, *outputs}}
        for record in self.history:
            self.draw(record)

    def json_lines(self) -> bytes:
        """metrics.jsonl: a line for each epoch."""
        return "".join(json.dumps(line) + "\n" for line in self.history).encode()

    def add(self, record: dict) -> None:
        """Write the history, and draw its last epoch's record."""
        def write() -> None:
            save({self.folder / "metrics.jsonl": self.json_lines()})
            self.draw(record)
            for writer in self.writers.values():
                writer.flush()

        processes.on_main(write)

    def draw(self, record: dict) -> None:
        """One epoch's metrics to TensorBoard, under the tags of the authors' code.

        The ensemble (or the only network) has Train/AccTop1 and Test/AccTop1, a student Test/stu0AccTop1. The leader
        has the plain tags in a sub-folder of its own. A matrix [p, p] is an image; white is 1.
        """
        for text, value in record.items():
            if isinstance(value, list):
                image = np.kron(np.nan_to_num(np.array(value, dtype=float)), np.ones((32, 32)))
                self.writers[WHOLE].add_image(text.capitalize(), image, record["epoch"], dataformats="HW")
            if not isinstance(value, float):
                continue
            output, phase, name = parse(text)
            name = name[0].upper() + name[1:]
            prefix = "" if output in self.writers else output
            tag = f"{phase.capitalize()}/{prefix}{name}" if phase else name
            self.writers.get(output, self.writers[WHOLE]).add_scalar(tag, value, record["epoch"])

    def finish(self, summary: dict) -> None:
        """Write summary.json: the training has reached its end."""
        processes.on_main(lambda: save({self.folder / "summary.json": as_json(summary)}))

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


# --- the log: train.log and standard output ---------------------------------------------------------------------------


def open_log(folder: Path) -> None:
    """Send the log to train.log in ``folder`` and to standard output."""
    log.setLevel(logging.INFO)
    log.handlers = [logging.FileHandler(folder / "train.log", encoding="utf-8"), logging.StreamHandler(sys.stdout)]
    for handler in log.handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
        handler.handleError = lambda record: None  # if the disk is full, the error of the checkpoint suffices


def close_log() -> None:
    for handler in log.handlers:
        handler.close()
    log.handlers = []


class Progress:
    """A bar on a terminal, lines in a file: every ``log_every`` steps loss, accuracy, images/s, remaining time."""

    def __init__(self, title: str, stepper, steps: int, log_every: int, method: Method):
        self.title, self.stepper, self.steps, self.log_every = title, stepper, steps, log_every
        shown = student(0) if method.best == MEAN else method.best
        self.shown = list(method.outputs).index(shown)
        self.bar = tqdm(total=steps, initial=stepper.sums.steps, desc=title, unit="step", leave=False,
                        disable=not (sys.stderr.isatty() and processes.is_main()))

    def update(self) -> None:
        """After a step."""
        sums, step = self.stepper.sums, self.stepper.sums.steps
        self.bar.update()
        if step % self.log_every or step == self.steps:
            return  # the sums are on the device: reading them is a host sync
        means = self.stepper.means()
        images = sums.earlier_images + (sums.images - sums.earlier_images) * processes.world_size()
        loss, accuracy = means["terms"]["total"], 100 * means["correct"][self.shown][0]
        text = f"loss {loss:.4f}  top-1 {accuracy:.2f} %  {images / sums.seconds:.0f} images/s"
        if not self.bar.disable:
            self.bar.set_postfix_str(text)
        else:
            left = sums.seconds / step * (self.steps - step)
            log.info(f"{self.title}  step {step}/{self.steps}  {text}  {left:.0f} s left in this epoch")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()


def epoch_line(record: dict, method: Method) -> str:
    """An epoch's record as a line of the log."""
    train, test = (record[metric(method.best, phase, "accTop1")] for phase in ("train", "test"))
    text = f"loss {record['train_loss']:.4f}  train {train:.2f} %  test {test:.2f} %"
    if "dist" in record:
        text += f"  ensemble {record[metric(WHOLE, 'test', 'accTop1')]:.2f} %  diversity {record['dist']:.3f}"
    return f"{text}  {record['images_per_second']:.0f} images/s  {record['seconds']:.1f} s"


def final_table(method: Method, chosen_by: str, best: dict, last: dict) -> str:
    """Top-1 and top-5 of every output, at the best epoch (chosen by that metric) and at the last epoch."""
    titles = method.outputs | mean_titles(method.outputs)
    width = max(20, *(len(title) + 1 for title in titles.values()))
    lines = [f"done: best epoch {best['epoch']} by {chosen_by}, last epoch {last['epoch']}",
             f"{'':{width}}{'best: top-1':>12}{'top-5':>8}{'last: top-1':>13}{'top-5':>8}"]
    for output, title in titles.items():
        cells = [record[metric(output, "test", k)] for record in (best, last) for k in ("accTop1", "accTop5")]
        lines.append("{:{}}{:12.2f}{:8.2f}{:13.2f}{:8.2f}".format(title, width, *cells))
    if "dist" in last:
        of_best, of_last = (math.nan if record["dist"] is None else record["dist"] for record in (best, last))
        lines.append(f"{'diversity':{width}}{of_best:12.4f}{of_last:21.4f}")
    return "\n".join(lines)
