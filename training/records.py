"""What a run writes down for people and for report.py: parameters, a line for each epoch, curves, summary."""

import json
import shlex
import sys
from pathlib import Path

import numpy as np

from runtime import processes
from runtime.device import environment
from runtime.files import as_json, save
from training.folder import remove_curves
from training.outputs import ENSEMBLE, TENSORBOARD_FOLDERS, parse


def describe_start(device, epoch: int, step: int) -> dict:
    """One start of a run, as recorded: from which epoch and step, the command, the environment."""
    return {"epoch": epoch, "step": step, "command": shlex.join(sys.argv), "environment": environment(device)}


class Records:
    """parameters.json, metrics.jsonl, summary.json and TensorBoard's curves. Only the first process writes.

    outputs: those that are measured. history: the records of all epochs so far, shared with the loop.
    """

    def __init__(self, folder: Path, outputs: dict[str, str], history: list[dict], parameters: dict, best: dict | None):
        self.folder, self.history, self.writers = folder, history, {}
        processes.on_main(lambda: self.start(outputs, parameters, best))

    def start(self, outputs: dict[str, str], parameters: dict, best: dict | None) -> None:
        """Write what is known before the first epoch, and draw the earlier epochs' curves again.

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
                        if output == ENSEMBLE or output in outputs}
        for record in self.history:
            self.draw(record)

    def json_lines(self) -> bytes:
        """metrics.jsonl: a line for each epoch."""
        return "".join(json.dumps(line) + "\n" for line in self.history).encode()

    def add_last(self) -> None:
        """Write the epoch that was added to the history."""
        processes.on_main(self.write)

    def write(self) -> None:
        save({self.folder / "metrics.jsonl": self.json_lines()})
        self.draw(self.history[-1])
        for writer in self.writers.values():
            writer.flush()

    def draw(self, record: dict) -> None:
        """One epoch's metrics to TensorBoard, under the tags of the authors' code.

        The ensemble (or the only network) has Train/AccTop1 and Test/AccTop1, a student Test/stu0AccTop1. The leader
        has the plain tags in a sub-folder of its own. A matrix [p, p] is an image; white is 1.
        """
        for text, value in record.items():
            if isinstance(value, list):
                image = np.kron(np.nan_to_num(np.array(value, dtype=float)), np.ones((32, 32)))
                self.writers[ENSEMBLE].add_image(text.capitalize(), image, record["epoch"], dataformats="HW")
            if not isinstance(value, float):
                continue
            output, phase, name = parse(text)
            name = name[0].upper() + name[1:]
            prefix = "" if output in self.writers else output
            tag = f"{phase.capitalize()}/{prefix}{name}" if phase else name
            self.writers.get(output, self.writers[ENSEMBLE]).add_scalar(tag, value, record["epoch"])

    def finish(self, summary: dict) -> None:
        """Write summary.json: the training has reached its end."""
        processes.on_main(lambda: save({self.folder / "summary.json": as_json(summary)}))

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
