"""The training loop, from the outside in: all epochs, one epoch with its evaluation, a step.

A step causes no host sync: the sums stay on the device until the progress line or the end of the epoch.
"""

import argparse
import math
import shlex
import sys
import warnings

import torch
from torch import Tensor, nn

import models
from data_loader import dataloader
from methods import revision
from runtime import processes
from runtime.checkpoints import digest
from runtime.device import autocast, environment, place
from runtime.errors import UserError
from runtime.files import without_nan
from training.checkpoint import NOT_STARTED, Checkpoints
from training.method import Method
from training.metrics import RunningSums, evaluate, in_rows, name_metrics, topk_correct
from training.outputs import metric
from training.records import Progress, Records, epoch_line, final_table, log
from training.run import Interrupted, Run, Signals

# --- a training -------------------------------------------------------------------------------------------------------


def train_method(Kind: type[Method], args: argparse.Namespace) -> None:
    """Train a method with the flags of its script. UserError if flags, data or a file are wrong."""
    run = Run(args, Kind.name(args))
    train_loader, test_loader = dataloader(
        args.dataset, args.batch_size, args.num_workers, args.data_dir, device=run.device, seed=args.seed,
        cache=args.cache == "on", val_size=args.val_size, train_size=args.train_size, views=Kind.views(args),
        decoder=args.decoder, image_size=args.image_size, normalisation=run.normalisation())
    run.check_epoch(len(train_loader))
    try:
        resumed = NOT_STARTED if run.checkpoint else {}  # no file of initial weights is read, or downloaded, again
        method = Kind(argparse.Namespace(**vars(args) | resumed), train_loader.num_classes)
    except ValueError as error:  # models/ imports nothing of this repository, so it has no UserError
        raise UserError(str(error), found_by_all=True) from error
    method.prepare(train_loader)
    fit(method, train_loader, test_loader, run)


def fit(method: Method, train_loader, test_loader, run: Run) -> None:
    """Train ``method``, from the start or from the run's checkpoint.

    The loaders are those of ``data_loader.dataloader``. After SIGINT, SIGTERM or SIGHUP the current step is finished
    and saved; the exit code is 128 + the signal's number.
    """
    args, history = run.args, run.history
    milestones = [] if args.cosine else args.schedule or default_milestones(run.unchangeable["num_epochs"])
    run.check_unchanged(**identity(method, train_loader, test_loader),
                        **{f"content of {name}": sha256 for name, (_, sha256) in run.files.items()})
    cosine = run.unchangeable["num_epochs"] if args.cosine else 0
    stepper = Stepper(method, args.lr, args.wd, milestones, run.device, args.amp, args.compile, args.sync_bn,
                      args.optimizer, cosine, args.warmup, args.label_smoothing, train_loader.num_classes)
    held_out = {} if train_loader.held_out is None else {"val": train_loader.held_out}
    evaluated = held_out | {"test": test_loader}
    chosen_by = metric(method.best, next(iter(evaluated)), "accTop1")
    if history and chosen_by not in history[-1]:  # older code did not use a folder val/ beside test/
        raise UserError(f"{run.folder} cannot be resumed with the folder val/ in {args.data_dir}: its epochs were "
                        "measured without it. Move val/ away to continue this run, or train anew with --version", True)
    with Signals() as signals, run:
        parameters, about = describe(run, stepper, train_loader, milestones)
        checkpoints = Checkpoints(run.folder, stepper, history, chosen_by, about)
        if run.checkpoint:
            checkpoints.restore(run.checkpoint)
            run.checkpoint = None  # its tensors are no longer needed
        records = Records(run.folder, method.outputs, history, parameters, checkpoints.saved_best())
        log_header(run, stepper, train_loader, test_loader, parameters)
        try:
            while len(history) < args.num_epochs:
                history.append(one_epoch(method, stepper, train_loader, evaluated, run, signals, checkpoints))
                is_best = checkpoints.best() is history[-1]
                if len(history) % args.save_every == 0 or is_best or len(history) == args.num_epochs:
                    checkpoints.save(is_best)
                records.add(history[-1])
            records.finish({"chosen_by": chosen_by, "best": checkpoints.best(), "last": history[-1]})
            log.info(final_table(method, chosen_by, checkpoints.best(), history[-1]))
            if advice := method.advice(history[-1]):
                log.warning(f"warning: {advice}")
            signals.check()
        except Interrupted as interrupted:
            if len(history) < args.num_epochs:
                checkpoints.save()
                log.info(f"stopped by signal {interrupted.number} after step {stepper.sums.steps} of epoch "
                         f"{len(history) + 1}: the same command with --resume {run.folder} continues there")
            sys.exit(128 + interrupted.number)
        finally:
            records.close()
            for loader in (train_loader, *evaluated.values()):
                loader.close()


def identity(method: Method, train_loader, test_loader) -> dict:
    """Values that identify the data and the teacher. They must be the same when a run is resumed."""
    held_out = 0 if train_loader.held_out is None else train_loader.held_out.num_images
    return {"number of held-out images": held_out, "classes": train_loader.classes,
            "images": [train_loader.num_images, test_loader.num_images],
            "normalisation": [list(train_loader.mean), list(train_loader.std)],
            **({} if method.teacher is None else {"teacher": digest(method.teacher.state_dict())})}


def describe(run: Run, stepper: "Stepper", train_loader, milestones: list[int]) -> tuple[dict, dict]:
    """-> the content of parameters.json, and the entries that are the same in all checkpoints of this start."""
    last = run.checkpoint or {"starts": [], "sums": {"steps": 0}}
    start = {"epoch": len(run.history) + 1, "step": last["sums"]["steps"], "command": shlex.join(sys.argv),
             "environment": environment(run.device)}
    data = {"classes": train_loader.classes, "mean": train_loader.mean, "std": train_loader.std}
    starts = [*last["starts"], start]
    parameters = {**vars(run.args), "method": run.method, "revision": revision(run.method), "milestones": milestones,
                  **data, "weights": sum(p.numel() for p in stepper.model.parameters()), "command": start["command"],
                  "files": {name: sha256[:8] for name, (_, sha256) in run.files.items()},
                  "environment": start["environment"], "starts": starts}
    return parameters, {"unchangeable": run.unchangeable, "flags": {"method": run.method, **vars(run.args)}, **data,
                        "files": run.files, "starts": starts, "steps_per_epoch": len(train_loader)}


def log_header(run: Run, stepper: "Stepper", train_loader, test_loader, parameters: dict) -> None:
    """The first lines of the log."""
    args = run.args
    log.info(f"{run.folder}: {args.model} on {args.dataset}, {train_loader.num_images} training and "
             f"{test_loader.num_images} test images, {parameters['weights']:,} weights, on {run.device}")
    steps = f"divided by 10 after each of the epochs {parameters['milestones']}, of {args.num_epochs} in all"
    schedule = f"falling to 0 as half a cosine in {args.num_epochs} epochs" if args.cosine else steps
    warmup = f", after a warm-up of {args.warmup} epochs" if args.warmup else ""
    log.info(f"{'AdamW, ' * (args.optimizer == 'adamw')}learning rate {args.lr:g}, {schedule}{warmup}")
    if (args.init or args.pretrained) and not run.history and not stepper.sums.steps:
        new = dict.fromkeys(name for part in stepper.model.modules() for name in getattr(part, "new_weights", ()))
        log.info(f"the weights start from those of {args.init or args.model}"
                 + (f", but for new ones: {', '.join(new)}" if new else ""))
        names = getattr(stepper.model, "names", [])  # of a group's students
        if not new and len(set(names)) < len(names) and stepper.method.views(args) == 1:
            log.warning("warning: students start with the same weights and take the same images, so they may stay "
                        "equal: start from a file without the classifier's weights, and each student draws its own")
    if train_loader.held_out is not None:
        log.info(f"{train_loader.held_out.num_images} held-out images choose the best epoch")
    if run.history or stepper.sums.steps:
        log.info(f"continues after {len(run.history)} epochs and {stepper.sums.steps} steps")


# --- an epoch ---------------------------------------------------------------------------------------------------------


def one_epoch(method: Method, stepper: "Stepper", loader, evaluated: dict, run: Run, signals: Signals,
              checkpoints: Checkpoints) -> dict:
    """Train and measure the next epoch, or the rest of an unfinished one; -> its record."""
    args, sums, epoch = run.args, stepper.sums, len(run.history)
    loader.set_epoch(epoch)
    weight, title = method.ramp_up(epoch, run.unchangeable["num_epochs"]), f"epoch {epoch + 1}/{args.num_epochs}"
    record = {"epoch": epoch + 1, "lr": stepper.lr, "weight": weight}
    if stepper.compiled:  # a Python number would be a constant: each epoch would be compiled again
        weight = torch.tensor(weight, device=stepper.device)
    stepper.model.train()
    stepper.earlier_steps = epoch * len(loader)
    with Progress(title, stepper, len(loader), args.log_every, method) as progress:
        batches, shares = signals.watch(loader.batches(sums.steps)), loader.shares(sums.steps)
        for (images, labels), share in zip(batches, shares, strict=True):
            stepper.step(images, labels, weight, share)
            progress.update()
            if args.save_steps and (stepper.earlier_steps + sums.steps) % args.save_steps == 0:
                checkpoints.save()
        means = stepper.means()
    record |= {"train_loss" if term == "total" else f"train_loss_{term}": mean for term, mean in means["terms"].items()}
    record |= name_metrics(means, method.outputs, "train")
    record["images_per_second"] = loader.num_images / sums.seconds
    processes.share_buffers(stepper.model)
    method.after_epoch(loader.held_out, stepper.autocast(), signals.watch)
    for phase, images in evaluated.items():
        record |= evaluate(method, images, phase, stepper.autocast(), signals.watch)
    record["seconds"] = sums.seconds
    log.info(f"{title}  {epoch_line(record, method)}")
    if wrong := [name for name, value in record.items() if without_nan(value) != value]:
        log.warning(f"{title}: not a finite number, recorded as null: {', '.join(wrong)}")
    stepper.next_epoch()
    return without_nan(record)


# --- a step -----------------------------------------------------------------------------------------------------------


class Stepper:
    """The state of a training. ``step`` changes it; a checkpoint contains ``state_dict``.

    amp: "bf16" or "fp16", the precision of the networks. Losses stay in float32; fp16 scales its gradients.
    compiled: trace the loss with torch.compile, on CUDA into CUDA graphs.
    sync_bn: with several processes, BatchNorm over the images of all of them.
    optimizer, cosine, warmup: see ``make_optimizer`` and ``make_scheduler``.
    label_smoothing: the part of a label's probability that is spread over all num_classes.
    """

    def __init__(self, method: Method, lr: float, wd: float, milestones: list[int], device: torch.device,
                 amp: str = "off", compiled: bool = False, sync_bn: bool = False, optimizer: str = "sgd",
                 cosine: int = 0, warmup: int = 0, label_smoothing: float = 0.0, num_classes: int = 0):
        self.model = method.model
        if sync_bn and processes.world_size() > 1:
            try:
                models.synchronise(self.model)
            except ValueError as error:
                raise UserError(str(error), found_by_all=True) from error
        place(self.model, device)
        if method.teacher is not None:
            place(method.teacher, device)
        foreign = any(hasattr(part, "new_weights") for part in self.model.modules())  # it may have unused weights
        self.replica = processes.replicated(self.model, device, all_used=not foreign)
        self.device, self.compiled = device, compiled
        self.optimizer = make_optimizer(optimizer, self.model, lr, wd)
        self.scheduler = make_scheduler(self.optimizer, milestones, cosine, warmup)
        self.label_smoothing, self.num_classes = label_smoothing, num_classes
        self.amp = amp
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        self.loss = torch.compile(method.loss, mode=mode, dynamic=False) if compiled else method.loss
        self.method = method
        self.sums, self.checked_steps = RunningSums(device), 0
        self.terms: list[str] = []  # the names of the loss's terms, known after a step
        self.earlier_steps = 0  # of the epochs before

    def autocast(self) -> torch.autocast:
        """The context in which the networks compute."""
        return autocast(self.device, self.amp)

    @property
    def lr(self) -> float:
        """The learning rate of the current epoch."""
        return self.scheduler.get_last_lr()[0]

    def step(self, images: Tensor, labels: Tensor, weight: float | Tensor, share: float = 1.0) -> None:
        """One optimizer step on one batch, without a host sync. Adds its loss and correct answers to the sums.

        images [B, 3, H, W] or views [B, V, 3, H, W], labels [B]: this process's part of the batch. share: B relative to
        an equal part.
        """
        of_epoch = self.sums.steps + 1
        number = self.earlier_steps + of_epoch
        self.method.before_step(number, of_epoch)
        with self.autocast():
            terms, logits = self.loss(self.replica, images, self.smoothed(labels), weight)
        if self.sums.steps and list(terms) != self.terms:
            raise UserError("this epoch was begun by older code, which did not record all terms of the loss: "
                            "resume from a checkpoint of the end of an epoch, or train anew with --overwrite or "
                            "--version", True)
        self.terms = list(terms)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(terms.total if share == 1 else terms.total * share).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.method.after_step(number, of_epoch)
        with torch.no_grad():
            correct = topk_correct(in_rows(logits, self.method.outputs), labels).sum(0)  # [R, 2]
            self.sums.add(len(labels), terms=torch.stack(list(terms.values())) * len(labels), correct=correct)

    def smoothed(self, labels: Tensor) -> Tensor:
        """Class numbers [B] -> with label smoothing, the probabilities (1 - e) [c = y] + e/C [B, C]."""
        if not self.label_smoothing:
            return labels
        e, C = self.label_smoothing, self.num_classes
        return torch.full((len(labels), C), e / C, device=labels.device).scatter_(1, labels[:, None], 1 - e + e / C)

    def means(self) -> dict:
        """The means of the sums; the loss's terms by name. UserError if one is not finite: its sum would stay so."""
        means, steps = self.sums.means(), self.sums.steps
        means["terms"] = dict(zip(self.terms, means["terms"], strict=True))
        if wrong := [name for name, value in means["terms"].items() if not math.isfinite(value)]:
            terms = " and ".join(name for name in wrong if name != "total" or len(wrong) == 1)  # total is their sum
            raise self.diverged(f"the {terms} loss", f"steps {self.checked_steps + 1} and {steps}")
        self.checked_steps = steps
        return means

    def diverged(self, what: str, steps: str) -> UserError:
        """The error of a training in which ``what`` is not a finite number."""
        epoch = self.scheduler.last_epoch + (self.sums.steps > 0)  # the current one, or the one that has just ended
        return UserError(f"the training diverged: {what} is not finite, epoch {epoch}, between {steps}, learning rate "
                         f"{self.lr:g}; the last checkpoint is as it was, and a lower --lr may help", found_by_all=True)

    def next_epoch(self) -> None:
        """Start an epoch: empty sums, and the learning rate of the schedule."""
        self.sums.reset()
        self.checked_steps = 0
        with warnings.catch_warnings():  # the warning of an epoch that was resumed after its last step
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.scheduler.step()

    def state_dict(self) -> dict:
        """Everything that a resumed training needs. UserError if weights or momentum are not finite."""
        if self.sums.steps:
            self.means()
        momenta = [t for state in self.optimizer.state.values() for t in state.values() if t is not None]
        # A network from elsewhere may have other buffers, and constants in them that are not finite.
        buffers = [t for name, t in self.model.named_buffers()
                   if ".network." not in name or name.endswith(("running_mean", "running_var"))]
        numbers = [t for t in (*self.model.parameters(), *buffers, *momenta) if t.is_floating_point() and t.numel()]
        finite = torch.stack(torch._foreach_norm(numbers, math.inf)).isfinite().all()
        if processes.greatest(int(not finite))():
            raise self.diverged("a weight", "the last checkpoint and this one")
        return {name: part.state_dict() for name, part in self.parts().items()} | {"terms": self.terms}

    def load_state_dict(self, state: dict) -> None:
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.terms = state.get("terms", ["total", "true", "group"])  # older checkpoints do not name them
        self.checked_steps = self.sums.steps

    def parts(self) -> dict:
        """Entries of a checkpoint -> the objects whose state they are."""
        return {"state_dict": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler,
                "scaler": self.scaler, "sums": self.sums}


def make_optimizer(name: str, model: nn.Module, lr: float, wd: float) -> torch.optim.Optimizer:
    """"sgd": Nesterov momentum 0.9 (the paper's recipe); "adamw". Weight decay on every parameter."""
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr, weight_decay=wd, fused=True)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=wd, fused=True)
    for p in model.parameters():  # if GradScaler skips the first step, the optimizer does not make these itself
        if p.requires_grad:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def make_scheduler(optimizer: torch.optim.Optimizer, milestones: list[int], cosine: int = 0, warmup: int = 0):
    """The learning rate of each epoch; scheduler.step() ends one.

    It is divided by 10 at each zero-based epoch in ``milestones``. cosine: the epochs of a cosine decay to 0, instead.
    warmup: the epochs of a linear warm-up before: lr/(N+1), 2 lr/(N+1), ...
    """
    schedulers = torch.optim.lr_scheduler
    if cosine:
        main = schedulers.CosineAnnealingLR(optimizer, cosine - warmup)
    else:
        main = schedulers.MultiStepLR(optimizer, [epoch - warmup for epoch in milestones], gamma=0.1)
    if not warmup:
        return main
    rise = schedulers.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
    return schedulers.SequentialLR(optimizer, [rise, main], [warmup])


def default_milestones(num_epochs: int) -> list[int]:
    """The zero-based epochs of a learning-rate step: a half and three quarters of the training, rounded up."""
    return [-(-num_epochs // 2), -(-3 * num_epochs // 4)]
