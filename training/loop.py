"""The epoch loop: train, evaluate, record, save. The method and the loaders are arguments."""

import sys

import torch

from runtime import processes
from runtime.files import without_nan
from training.checkpoint import Checkpoints
from training.evaluation import evaluate
from training.log import log
from training.method import Method
from training.metrics import name_metrics
from training.outputs import metric
from training.progress import Progress, epoch_line, final_table
from training.records import Records, describe_start
from training.run import Run
from training.signals import Interrupted, Signals
from training.step import Trainer, default_milestones


def fit(method: Method, train_loader, test_loader, run: Run) -> None:
    """Train ``method``, from the start or from the run's checkpoint.

    The loaders are those of ``data_loader.dataloader``. After SIGINT, SIGTERM or SIGHUP the current step is finished
    and saved; the exit code is 128 + the signal's number.
    """
    args, history = run.args, run.history
    milestones = args.schedule or default_milestones(run.num_epochs)
    run.check_revision(method.revision)
    run.check_unchanged(**data_identity(train_loader, test_loader), **method.unchangeable())
    trainer = Trainer(method, args.lr, args.wd, milestones, run.device, args.amp, args.compile, args.sync_bn)
    evaluated = {"test": test_loader}
    if train_loader.held_out is not None:
        evaluated = {"val": train_loader.held_out, "test": test_loader}
    chosen_by = metric(method.best, next(iter(evaluated)), "accTop1")
    if history and chosen_by not in history[-1]:  # older code did not use a folder val/ beside test/
        run.refuse(f"{run.folder} cannot be resumed with the folder val/ in {args.data_dir}: its epochs were measured "
                   "without it. Move val/ away to continue this run, or train anew with --version")
    with Signals() as signals, run:
        parameters, fixed = describe(run, trainer, train_loader, milestones)
        checkpoints = Checkpoints(run.folder, trainer, history, chosen_by, fixed)
        if run.checkpoint:
            checkpoints.restore(run.checkpoint)
            run.checkpoint = None  # its tensors are no longer needed
        records = Records(run.folder, method.outputs, history, parameters, checkpoints.saved_best())
        log_header(run, trainer, train_loader, test_loader, parameters)
        try:
            while len(history) < args.num_epochs:
                history.append(one_epoch(method, trainer, train_loader, evaluated, run, signals, checkpoints))
                is_best = checkpoints.best() is history[-1]
                if len(history) % args.save_every == 0 or is_best or len(history) == args.num_epochs:
                    checkpoints.save(is_best)
                records.add_last()
            records.finish({"chosen_by": chosen_by, "best": checkpoints.best(), "last": history[-1]})
            log.info(final_table(method, chosen_by, checkpoints.best(), history[-1]))
            if advice := method.advice(history[-1]):
                log.warning(f"warning: {advice}")
            signals.check()
        except Interrupted as interrupted:
            if len(history) < args.num_epochs:
                checkpoints.save()
                log.info(f"stopped by signal {interrupted.number} after step {trainer.sums.steps} of epoch "
                         f"{len(history) + 1}: --resume {run.folder} continues there")
            sys.exit(128 + interrupted.number)
        finally:
            records.close()
            for loader in (train_loader, *evaluated.values()):
                loader.close()


def data_identity(train_loader, test_loader) -> dict:
    """Values that identify the data. They must be the same when a run is resumed."""
    held_out = 0 if train_loader.held_out is None else train_loader.held_out.num_images
    return {"number of held-out images": held_out, "classes": train_loader.classes,
            "images": [train_loader.num_images, test_loader.num_images],
            "normalisation": [list(train_loader.mean), list(train_loader.std)]}


def describe(run: Run, trainer: Trainer, train_loader, milestones: list[int]) -> tuple[dict, dict]:
    """-> the content of parameters.json, and the entries that are the same in all checkpoints of a run."""
    last = run.checkpoint or {"starts": [], "tally": {"steps": 0}}
    start = describe_start(run.device, len(run.history) + 1, last["tally"]["steps"])
    data = {"classes": train_loader.classes, "mean": train_loader.mean, "std": train_loader.std}
    starts = [*last["starts"], start]
    parameters = {**vars(run.args), "method": run.method or "baseline", "milestones": milestones, **data,
                  "weights": sum(p.numel() for p in trainer.model.parameters()), "command": start["command"],
                  "environment": start["environment"], "starts": starts}
    return parameters, {"recipe": run.recipe, "flags": {"method": run.method, **vars(run.args)}, **data,
                        "starts": starts}


def log_header(run: Run, trainer: Trainer, train_loader, test_loader, parameters: dict) -> None:
    """The first lines of the log."""
    args = run.args
    log.info(f"{run.folder}: {args.model} on {args.dataset}, {train_loader.num_images} training and "
             f"{test_loader.num_images} test images, {parameters['weights']:,} weights, on {run.device}")
    log.info(f"learning rate {args.lr:g}, divided by 10 after each of the epochs {parameters['milestones']}, "
             f"of {args.num_epochs} in all")
    if train_loader.held_out is not None:
        log.info(f"{train_loader.held_out.num_images} held-out images choose the best epoch")
    if run.history or trainer.sums.steps:
        log.info(f"continues after {len(run.history)} epochs and {trainer.sums.steps} steps")


def one_epoch(method: Method, trainer: Trainer, loader, evaluated: dict, run: Run, signals: Signals,
              checkpoints: Checkpoints) -> dict:
    """Train and measure the next epoch, or what is left of it; -> its record."""
    args, sums, epoch = run.args, trainer.sums, len(run.history)
    loader.set_epoch(epoch)
    weight, title = method.ramp_up(epoch, run.num_epochs), f"epoch {epoch + 1}/{args.num_epochs}"
    record = {"epoch": epoch + 1, "lr": trainer.lr, "weight": weight}
    with Progress(title, trainer, len(loader), args.log_every, method) as progress:
        for _ in train_steps(trainer, loader, weight, signals):
            progress.update()
            if args.save_steps and sums.steps % args.save_steps == 0:
                checkpoints.save()
        means = trainer.means()
    record |= {"train_loss" if term == "total" else f"train_loss_{term}": mean for term, mean in means["terms"].items()}
    record |= name_metrics(means, method.outputs, "train")
    record["images_per_second"] = loader.num_images / sums.seconds
    processes.share_buffers(trainer.model)
    method.after_epoch(loader.held_out, trainer.autocast(), signals.watch)
    for phase, images in evaluated.items():
        record |= evaluate(method, images, phase, trainer.autocast(), signals.watch)
    record["seconds"] = sums.seconds
    log.info(f"{title}  {epoch_line(record, method)}")
    if wrong := [name for name, value in record.items() if without_nan(value) != value]:
        log.warning(f"{title}: not a finite number, recorded as null: {', '.join(wrong)}")
    trainer.next_epoch()
    return without_nan(record)


def train_steps(trainer: Trainer, loader, weight: float, signals: Signals):
    """Take the steps that are left in the epoch; yield after each."""
    trainer.model.train()
    if trainer.compiled:  # a Python number would be a constant: each epoch would be compiled again
        weight = torch.tensor(weight, device=trainer.device)
    first = trainer.sums.steps
    trainer.earlier_steps = loader.epoch * len(loader)
    for (images, labels), share in zip(signals.watch(loader.batches(first)), loader.shares(first), strict=True):
        trainer.step(images, labels, weight, share)
        yield
