"""The epoch loop: step, evaluation, schedule, checkpoint, logs. It knows no method: a script hands it a ``Method``.

A step reads nothing back from the device; sums stay there until the progress line or the epoch's end asks for them.
"""

import math
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import parallel
from data_loader import Loader
from errors import UserError
from losses import Terms, full_precision
from models import count_batches
from run import Interrupted, Run, Signals, log

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
NO_AUTOCAST = nullcontext()


class Method(NamedTuple):
    """What distinguishes a method, as the loop sees it.

    rows: each network or ensemble that is measured: the name in front of its figures ("stu0", "stu1", ... for the
        students of a group, "" for its ensemble or for the only network) -> what the final table calls it.
    objective(model, images, labels, weight) -> Terms, logits of the rows [B, R, C]; one training step's loss.
    predict(model, images) -> logits of the rows [B, R, C], and per-image tensors whose mean over the test images is
        reported under their names.
    weight(epoch): w(e).
    best: the test figure that chooses the best epoch; where images are held out (--val_size), the same of those.
    curves: rows whose TensorBoard curves have a sub-folder of their own.
    """

    rows: dict[str, str]
    objective: Callable[[nn.Module, Tensor, Tensor, float], tuple[Terms, Tensor]]
    predict: Callable[[nn.Module, Tensor], tuple[Tensor, dict[str, Tensor]]]
    best: str
    weight: Callable[[int], float] = lambda epoch: 1.0
    curves: Mapping[str, str] = MappingProxyType({})


# --- figures ------------------------------------------------------------------------------------------------------


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the label is the first, and among the first 5, of each row: logits [B, R, C], labels [B] -> [B, R, 2].

    The label is among the first k where fewer than k classes are ahead of it, so nothing is sorted. Of equal scores,
    which half precision has many of, the lower class is ahead; a NaN is behind nobody and a miss.
    """
    C, labels = logits.shape[-1], labels.view(-1, 1, 1)
    own = logits.gather(-1, labels.expand(-1, logits.shape[1], 1))
    earlier = torch.arange(C, device=logits.device) < labels  # [B, 1, C]
    behind = torch.where(earlier, logits < own, logits <= own).sum(-1)  # [B, R]: the label's own class among them
    return torch.stack([behind > C - k for k in (1, 5)], -1)


def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Top-1 and top-5 hits of each row, counted: logits [B, R, C], labels [B] -> [R, 2]."""
    return right(logits, labels).sum(0)


def distance(probabilities: Tensor) -> Tensor:
    """Diversity: Euclidean distance of two students' outputs [B, m, C], mean over all pairs, summed over images."""
    m = probabilities.shape[1]
    pairs = torch.cdist(probabilities, probabilities, compute_mode="donot_use_mm_for_euclid_dist")  # [B, m, m]
    return pairs.sum() / (m * (m - 1))


class Tally:
    """Sums over the images of an epoch, kept on the device and read once; images, steps and seconds so far."""

    def __init__(self, device: torch.device):
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Forget the epoch, and start its clock."""
        self.images, self.steps, self.sums = 0, 0, {}
        self.before, self.start = 0.0, time.perf_counter()

    def add(self, images: int, **sums: Tensor) -> None:
        """Add one step's sums over ``images`` images (tensors of any shape, float64 from here on)."""
        self.images += images
        self.steps += 1
        for name, value in sums.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros(value.shape, dtype=torch.float64, device=self.device)
            self.sums[name] += value

    def totals(self) -> tuple[int, dict[str, Tensor]]:
        """One read: images and sums of all processes together, on the CPU."""
        names = sorted(self.sums)
        flat = [self.sums[name].flatten() for name in names]
        numbers = parallel.total(torch.cat([*flat, flat[0].new_tensor([self.images])]).cpu())
        *parts, images = numbers.split([*(len(part) for part in flat), 1])
        return int(images), {name: part.view(self.sums[name].shape) for name, part in zip(names, parts, strict=True)}

    def means(self) -> dict[str, list]:
        """The mean over images of every sum, as nested lists."""
        images, sums = self.totals()
        return {name: (value / images).tolist() for name, value in sums.items()}

    @property
    def seconds(self) -> float:
        """Since the reset, without the time between an interruption and its continuation."""
        return self.before + time.perf_counter() - self.start

    def state_dict(self) -> dict:
        images, sums = self.totals() if self.steps else (0, {})
        return {"images": images, "steps": self.steps, "seconds": self.seconds, "sums": sums}

    def load_state_dict(self, state: dict) -> None:
        """Take up an epoch; what all processes had summed is the first one's."""
        own = parallel.is_main()
        self.steps, self.before, self.start = state["steps"], state["seconds"], time.perf_counter()
        self.images = state["images"] if own else 0
        self.sums = {name: value.to(self.device) * own for name, value in state["sums"].items()}


def figures(means: dict, rows: Iterable[str], phase: str) -> dict[str, float]:
    """Name the means: <row><phase>_accTop1, _accTop5 (in %) and _loss, and the students' mean_<phase>_..."""
    named, rows = {}, list(rows)
    for r, row in enumerate(rows):
        top1, top5 = means["hits"][r]
        named[f"{row}{phase}_accTop1"], named[f"{row}{phase}_accTop5"] = 100 * top1, 100 * top5
        if "cross_entropy" in means:
            named[f"{row}{phase}_loss"] = means["cross_entropy"][r]
    students = student_rows(rows)
    for figure in ("accTop1", "accTop5"):
        if students:
            values = [named[f"{rows[r]}{phase}_{figure}"] for r in students]
            named[f"mean_{phase}_{figure}"] = sum(values) / len(values)
    return named


def student_rows(rows: Iterable[str]) -> list[int]:
    """The rows that are numbered students of a group (not its leader, nor an ensemble)."""
    return [r for r, row in enumerate(rows) if re.fullmatch(r"stu\d+", row)]


# --- one epoch ------------------------------------------------------------------------------------------------------


class Trainer:
    """What a step works with: model, objective, optimizer, schedule, the sums of its epoch, and how they compute.

    amp: "bf16" or "fp16", the precision of the networks (losses stay in float32; fp16 scales its gradients).
    compiled: trace the objective with torch.compile, on CUDA into CUDA graphs.
    sync_bn: with several processes, BatchNorm over the images of all of them.
    """

    def __init__(self, model: nn.Module, method: Method, lr: float, wd: float, milestones: list[int],
                 device: torch.device, amp: str = "off", compiled: bool = False, sync_bn: bool = False):
        self.model = model.to(device, memory_format=torch.channels_last)
        self.replica = parallel.replicated(self.model, device, sync_bn)
        self.device, self.compiled = device, compiled
        self.optimizer, self.scheduler = sgd(self.model, lr, wd, milestones)
        self.precision = {"dtype": AMP.get(amp), "enabled": amp in AMP}
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        self.objective = torch.compile(method.objective, mode=mode, dynamic=False) if compiled else method.objective
        self.tally, self.read_at, self.uncounted = Tally(device), 0, 0

    def autocast(self) -> torch.autocast:
        """The context in which networks compute, in half precision with --amp."""
        return torch.autocast(self.device.type, **self.precision)

    @property
    def lr(self) -> float:
        """The learning rate of the epoch under way."""
        return self.scheduler.get_last_lr()[0]

    def step(self, images: Tensor, labels: Tensor, weight: float | Tensor, share: float = 1.0) -> None:
        """One step of SGD on one batch, its loss and hits added to the tally. The host reads nothing.

        images [B, 3, H, W], labels [B]: this process's part of the batch; share: B in relation to an equal part.
        """
        with self.autocast():
            terms, logits = self.objective(self.replica, images, labels, weight)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(terms.total if share == 1 else terms.total * share).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.uncounted += 1
        with torch.no_grad():
            self.tally.add(len(labels), terms=torch.stack(terms) * len(labels), hits=hits(logits, labels))

    def means(self) -> dict[str, list]:
        """The tally's means; UserError where a term of the loss is not finite, which sums do not forget."""
        means, steps = self.tally.means(), self.tally.steps
        wrong = [name for name, value in zip(Terms._fields, means["terms"], strict=True) if not math.isfinite(value)]
        if wrong:
            terms = " and ".join(wrong[1:]) or "total (or the teacher's)"
            raise self.diverged(f"the {terms} loss", f"steps {self.read_at + 1} and {steps}")
        self.read_at = steps
        return means

    def diverged(self, what: str, steps: str) -> UserError:
        """The error that ends a training whose ``what`` is no finite number."""
        epoch = self.scheduler.last_epoch + (self.tally.steps > 0)  # the one under way, or the one that is just over
        error = UserError(
            f"the training diverged: {what} is not finite, epoch {epoch}, between {steps}, learning rate "
            f"{self.lr:g}; the last checkpoint is as it was, and a lower --lr may help")
        error.told = not parallel.is_main()  # all processes have the same sums
        return error

    def next_epoch(self) -> None:
        """Start an epoch: empty sums, and the learning rate of the schedule."""
        self.tally.reset()
        self.read_at = 0
        with warnings.catch_warnings():  # it misses an optimizer step where an epoch is resumed after its last one
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.scheduler.step()

    def state_dict(self) -> dict:
        """All that a continuation needs; UserError where weights or momentum are no longer finite numbers."""
        if self.tally.steps:
            self.means()
        count_batches(self.model, self.uncounted)
        self.uncounted = 0
        momenta = [state["momentum_buffer"] for state in self.optimizer.state.values()]
        numbers = [t for t in (*self.model.state_dict().values(), *momenta) if t is not None and t.is_floating_point()]
        finite = torch.stack(torch._foreach_norm(numbers, math.inf)).isfinite().all()
        if parallel.greatest(int(not finite))():
            raise self.diverged("a weight", "the last checkpoint and this one")
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load_state_dict(self, state: dict) -> None:
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.read_at = self.tally.steps

    def parts(self) -> dict:
        return {"state_dict": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler,
                "scaler": self.scaler, "tally": self.tally}


def sgd(model: nn.Module, lr: float, wd: float, milestones: list[int]):
    """-> optimizer, scheduler: Nesterov momentum 0.9, weight decay on every parameter, and a learning rate that is a
    tenth from each zero-based epoch in ``milestones`` on; scheduler.step() ends an epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=wd, fused=True)
    for p in model.parameters():  # as the first step would: one that GradScaler skips would leave it uninitialised
        optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)


def train_epoch(trainer: Trainer, rows: Iterable[str], batches: Iterable, shares: Iterable[float], weight: float,
                after_step: Callable[[], None]) -> dict[str, float]:
    """The rest of an epoch, from the step on that the trainer's tally has reached; -> its figures."""
    trainer.model.train()
    if trainer.compiled:  # as a number it would be a constant of the traced code, which every epoch would trace anew
        weight = torch.tensor(weight, device=trainer.device)
    for (images, labels), share in zip(batches, shares, strict=True):
        trainer.step(images, labels, weight, share)
        after_step()
    means = trainer.means()
    total, true, group = means["terms"]
    named = figures(means, rows, "train")
    return {"train_loss": total, "train_loss_true": true, "train_loss_group": group, **named}


@torch.inference_mode()
def evaluate(method: Method, model: nn.Module, loader: Loader, phase: str = "test",
             autocast: torch.autocast | nullcontext = NO_AUTOCAST,
             watch: Callable[[Iterable], Iterator] = iter,
             further: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]] = lambda log_p, top1, labels: {}
             ) -> dict[str, float]:
    """Figures over all images of a loader, each image weighing the same: top-1/5 and cross-entropy of each row,
    ``dist`` over the pairs of students, and whatever else the method's ``predict`` reports.

    watch: what the batches pass through on their way (``Signals.watch``, which may end the evaluation).
    further(log_p [B, R, C], top1 [B, R], labels [B]) -> more sums over a batch, whose means are reported under their
        names; top1: whether the label is a row's first class.
    """
    model.eval()
    students = student_rows(method.rows)
    tally = Tally(loader.device)
    for images, labels in watch(loader):
        with autocast:
            logits, extras = method.predict(model, images)  # [B, R, C]
        log_p = F.log_softmax(full_precision(logits), dim=-1)
        own = log_p.gather(-1, labels.view(-1, 1, 1).expand(-1, len(method.rows), 1)).squeeze(-1)  # [B, R]
        first = right(logits, labels)
        sums = {"hits": first.sum(0), "cross_entropy": -own.sum(0), **further(log_p, first[..., 0], labels)}
        if len(students) > 1:
            sums["dist"] = distance(log_p[:, students].exp())
        for name, value in extras.items():  # half precision with --amp
            sums[name] = value.sum(0, dtype=torch.float64)
        tally.add(len(labels), **sums)
    means = tally.means()
    named = figures(means, method.rows, phase)
    return named | {k: v for k, v in means.items() if k not in ("hits", "cross_entropy")}


class Progress:
    """A bar on a terminal, lines elsewhere: every ``log_every`` steps loss, accuracy, images/s, remaining time."""

    def __init__(self, title: str, trainer: Trainer, steps: int, log_every: int, row: int):
        self.title, self.trainer, self.steps, self.log_every, self.row = title, trainer, steps, log_every, row
        self.bar = tqdm(total=steps, initial=trainer.tally.steps, desc=title, unit="step",
                        leave=False) if sys.stderr.isatty() and parallel.is_main() else None

    def update(self) -> None:
        tally, step = self.trainer.tally, self.trainer.tally.steps
        if self.bar is not None:
            self.bar.update()
        if step % self.log_every or step == self.steps:
            return  # the figures are on the device, and reading them makes the host wait
        means = self.trainer.means()
        images = tally.images * parallel.world_size()
        loss, accuracy = means["terms"][0], 100 * means["hits"][self.row][0]
        text = f"loss {loss:.4f}  top-1 {accuracy:.2f} %  {images / tally.seconds:.0f} images/s"
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        else:
            left = tally.seconds / step * (self.steps - step)
            log.info(f"{self.title}  step {step}/{self.steps}  {text}  {left:.0f} s left in this epoch")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()


# --- a training ---------------------------------------------------------------------------------------------------


def fit(run: Run, model: nn.Module, method: Method) -> dict:
    """Train ``model`` to the end of the run, from where its checkpoint stopped if there is one; -> the best record.

    SIGINT and SIGTERM end it after the step that they come in: a checkpoint of that step, and SystemExit with 128 and
    the signal's number.
    """
    args, device, milestones = run.args, run.device, run.milestones()
    trainer = Trainer(model, method, args.lr, args.wd, milestones, device, args.amp, args.compile, args.sync_bn)
    with Signals() as signals:
        run.open(trainer, method.best, method.curves)
        log.info(f"{run.folder}: {args.model} on {args.dataset}, {run.train_loader.num_images} training and "
                 f"{run.test_loader.num_images} test images, {run.parameters['weights']:,} weights, on {device}")
        log.info(f"learning rate {args.lr:g}, divided by 10 after each of the epochs {milestones}, "
                 f"of {args.num_epochs} in all")
        if run.history or trainer.tally.steps:
            log.info(f"continues after {len(run.history)} epochs and {trainer.tally.steps} steps")
        try:
            while len(run.history) < args.num_epochs:
                run.record(one_epoch(run, trainer, method, signals))
            best, last = run.finish()
            log.info(f"done: best epoch {best['epoch']} by {run.best_figure}, last epoch {last['epoch']}\n"
                     f"{table(method, best, last)}")
            signals.check()
        except Interrupted as interrupted:
            if len(run.history) < args.num_epochs:
                run.save()
                log.info(f"stopped by signal {interrupted.number} after step {trainer.tally.steps} of epoch "
                         f"{len(run.history) + 1}: --resume {run.folder} continues there")
            sys.exit(128 + interrupted.number)
        finally:
            run.close()
    return best


def one_epoch(run: Run, trainer: Trainer, method: Method, signals: Signals) -> dict:
    """Train and measure the next epoch, or what is left of it; -> its record."""
    args, loader, tally, epoch = run.args, run.train_loader, trainer.tally, len(run.history)
    loader.set_epoch(epoch)
    weight, title = method.weight(epoch), f"epoch {epoch + 1}/{args.num_epochs}"
    record = {"epoch": epoch + 1, "lr": trainer.lr, "weight": weight}
    progress = Progress(title, trainer, len(loader), args.log_every, list(method.rows).index(row_of(method.best)))

    def after_step() -> None:
        progress.update()
        if args.save_steps and tally.steps % args.save_steps == 0:
            run.save()

    with progress:
        first = tally.steps
        batches = signals.watch(loader.batches(first))
        record |= train_epoch(trainer, method.rows, batches, loader.shares(first), weight, after_step)
    record["images_per_second"] = loader.num_images / tally.seconds
    parallel.share_buffers(trainer.model)
    for phase, evaluated in run.evaluated():
        record |= evaluate(method, trainer.model, evaluated, phase, trainer.autocast(), signals.watch)
    record["seconds"] = tally.seconds
    log.info(f"{title}  {summary_line(record, method)}")
    trainer.next_epoch()
    return record


def row_of(figure: str) -> str:
    """The row that a figure belongs to, the first one where it is a mean: "stu_test_accTop1" -> "stu_"."""
    row = figure.partition("test_")[0]
    return "stu0" if row == "mean_" else row


def summary_line(record: dict, method: Method) -> str:
    """An epoch's record as a line of the log."""
    name = method.best.replace("test", "{phase}")
    train, test = (record[name.format(phase=phase)] for phase in ("train", "test"))
    text = f"loss {record['train_loss']:.4f}  train {train:.2f} %  test {test:.2f} %"
    if "dist" in record:
        text += f"  ensemble {record['test_accTop1']:.2f} %  diversity {record['dist']:.3f}"
    return f"{text}  {record['images_per_second']:.0f} images/s  {record['seconds']:.1f} s"


def table(method: Method, best: dict, last: dict) -> str:
    """Top-1 and top-5 of everything that was measured, at the best and at the last epoch."""
    names = dict(method.rows)
    students = [names[f"stu{i}"] for i in range(len(student_rows(names)))]
    if students:
        names["mean_"] = f"mean of the {students[0].split()[0]}s"
    lines = [f"{'':20}{'best: top-1':>12}{'top-5':>8}{'last: top-1':>13}{'top-5':>8}"]
    for row, name in names.items():
        cells = [record[f"{row}test_{k}"] for record in (best, last) for k in ("accTop1", "accTop5")]
        lines.append("{:20}{:12.2f}{:8.2f}{:13.2f}{:8.2f}".format(name, *cells))
    if "dist" in last:
        lines.append(f"{'diversity':20}{best['dist']:12.4f}{last['dist']:21.4f}")
    return "\n".join(lines)
