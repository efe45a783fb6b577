"""What a training prints: progress within an epoch, a line for each epoch, and the final table."""

import math
import sys

from tqdm import tqdm

from runtime import processes
from training.log import log
from training.method import Method
from training.outputs import ENSEMBLE, MEAN, mean_titles, metric, student
from training.step import Trainer


class Progress:
    """A bar on a terminal, lines in a file: every ``log_every`` steps loss, accuracy, images/s, remaining time."""

    def __init__(self, title: str, trainer: Trainer, steps: int, log_every: int, method: Method):
        self.title, self.trainer, self.steps, self.log_every = title, trainer, steps, log_every
        shown = student(0) if method.best == MEAN else method.best
        self.shown = list(method.outputs).index(shown)
        self.bar = tqdm(total=steps, initial=trainer.sums.steps, desc=title, unit="step",
                        leave=False) if sys.stderr.isatty() and processes.is_main() else None

    def update(self) -> None:
        """After a step."""
        sums, step = self.trainer.sums, self.trainer.sums.steps
        if self.bar is not None:
            self.bar.update()
        if step % self.log_every or step == self.steps:
            return  # the sums are on the device: reading them makes the host wait
        means = self.trainer.means()
        images = sums.images * processes.world_size()
        loss, accuracy = means["terms"]["total"], 100 * means["hits"][self.shown][0]
        text = f"loss {loss:.4f}  top-1 {accuracy:.2f} %  {images / sums.seconds:.0f} images/s"
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        else:
            left = sums.seconds / step * (self.steps - step)
            log.info(f"{self.title}  step {step}/{self.steps}  {text}  {left:.0f} s left in this epoch")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()


def epoch_line(record: dict, method: Method) -> str:
    """An epoch's record as a line of the log."""
    train, test = (record[metric(method.best, phase, "accTop1")] for phase in ("train", "test"))
    text = f"loss {record['train_loss']:.4f}  train {train:.2f} %  test {test:.2f} %"
    if "dist" in record:
        text += f"  ensemble {record[metric(ENSEMBLE, 'test', 'accTop1')]:.2f} %  diversity {record['dist']:.3f}"
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
