"""The loop: epochs of updates, validation, checkpoints.

Every update depends on (configuration, iteration) alone, so a run that was stopped and resumed ends bit-equal to one
that was not (on a CPU; on a GPU with `deterministic`).
"""

import logging
import math
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from models import build_model, checkpoints
from models.data import IGNORE, end_workers, endure_signals, signals_wait
from models.data.transforms import RECIPES
from models.training.batches import Batches, TrainingData, stacked
from models.training.config import TrainConfig
from models.training.crf_loss import crf_loss
from models.training.machine import made_on
from models.training.processes import Processes
from models.training.recipes import build_optimizer, poly
from models.training.report import gates, open_board, opening, peak_memory_mb, summary, write_board
from models.training.run_folder import RunFolder
from models.training.starting import batch_norms, load_initial_weights, pixel_weights, prepare_batch_norm
from models.weights import guard

Validate = Callable[[nn.Module], dict[str, Any]]


class TrainingDiverged(RuntimeError):
    """The loss or the weights are not numbers; the run folder's diverged.json names the batch."""


class Stopped(RuntimeError):
    """A signal asked for the end; everything needed to resume is saved."""


class Trainer:
    """Trains one network on `train_set`, a data set of models.data (or one like it: classes, set_epoch, samples).

    validate: network in eval mode -> {"mean_iou": float or None, …}; None trains blindly.
    notes: lines for the log, after the first ones. fresh: False leaves the weights to `resume`.
    Every process of a group makes the same calls; the first one writes: files, and its log to the terminal, too.
    """

    def __init__(
        self,
        config: TrainConfig,
        train_set: TrainingData,
        folder: RunFolder,
        processes: Processes,
        validate: Validate | None = None,
        workers: int = 0,
        progress: bool | None = None,
        tensorboard: bool = False,
        terminal: bool = True,
        notes: Sequence[str] = (),
        fresh: bool = True,
    ) -> None:
        recipe = config.recipe
        local_batch, rest = divmod(recipe.batch_size, processes.size)
        if rest:
            raise ValueError(f"batch_size {recipe.batch_size} must be a multiple of the {processes.size} processes.")
        self.steps = len(train_set) // recipe.batch_size
        if not self.steps:
            raise ValueError(
                f"The training set has {len(train_set)} images, less than one batch of {recipe.batch_size}."
            )
        self.config, self.folder, self.processes, self.validate = config, folder, processes, validate
        self.train_set = train_set
        self.batches = Batches(len(train_set), local_batch, self.steps, config.seed, processes)
        self.loader = DataLoader(
            cast(Dataset, train_set),
            batch_sampler=self.batches,
            num_workers=workers,
            persistent_workers=workers > 0,  # starting them anew would cost more than a short epoch
            pin_memory=processes.device.type == "cuda",
            collate_fn=stacked,
            worker_init_fn=endure_signals,
        )
        self.show_bar = processes.is_first and (sys.stderr.isatty() if progress is None else progress)
        self.log = folder.open_log(terminal) if processes.is_first else logging.getLogger("difnet.silent")
        self.board = open_board(folder.path) if tensorboard and processes.is_first else None

        for line in (*opening(config, len(train_set), train_set.classes, self.steps, processes), *notes):
            self.log.info("%s", line)
        if config.deterministic:
            torch.use_deterministic_algorithms(True)
        torch.manual_seed(config.seed)
        self.network = build_model(config.model, len(train_set.classes), **config.options)
        origin = load_initial_weights(self.network, config, train_set.classes) if fresh else "of the run"
        if "device_map" not in config.options:  # which has placed the branches already
            self.network.to(processes.device)
        if config.channels_last:
            self.network.to(memory_format=torch.channels_last)
        prepare_batch_norm(self.network, config.batch_norm, processes)
        self.optimizer = build_optimizer(self.network, recipe)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=config.amp == "fp16")
        self.model: nn.Module = self.network
        if processes.size > 1:
            self.model = DistributedDataParallel(self.network)
        if config.compile:
            self.model = cast(nn.Module, torch.compile(self.model))

        self.weights = pixel_weights(config.class_weights, len(train_set.classes), processes.device)
        std = RECIPES[recipe.transform].std
        self.grey_levels = torch.tensor(std, device=processes.device).view(-1, 1, 1)  # of one unit of an image
        self.environment = made_on(processes.device)
        self.data = {"images": len(train_set), "kind": config.kind, "reduce_zero_label": config.reduce_zero_label}
        self.epoch, self.step, self.loss_sum = 0, 0, 0.0  # the position: `step` updates of `epoch` are done
        self.best: dict[str, Any] = {}
        self.stop_asked, self.validating, self.names = False, False, [""]
        parameters = sum(p.numel() for p in self.network.parameters())
        self.log.info("%s, %s parameters, weights: %s", config.model, f"{parameters:,}", origin)
        self.log.info("recipe %s: %s", recipe.name, recipe.to_dict())

    @property
    def iteration(self) -> int:
        return self.epoch * self.steps + self.step

    def fit(self, stop_after: int | None = None) -> dict[str, Any]:
        """Train from the current position to the last epoch, or to `stop_after`; returns the last epoch's metrics.

        Raises Stopped after a signal and TrainingDiverged for a loss that is not finite.
        """
        end = min(self.config.recipe.epochs, stop_after or self.config.recipe.epochs)
        row: dict[str, Any] = {}
        previous = {name: signal.signal(name, self._ask_to_stop) for name in (signal.SIGTERM, signal.SIGINT)}
        others = set(multiprocessing.active_children())
        try:
            while self.epoch < end:
                row = self._run_epoch()
        except BaseException:
            # workers endure the signal by which a process that exits would end them, and it would wait for them for ever
            end_workers(set(multiprocessing.active_children()) - others)
            raise
        finally:
            for name, handler in previous.items():
                signal.signal(name, handler)
            if self.board:
                self.board.flush()
        return row

    def _run_epoch(self) -> dict[str, Any]:
        started, first_step = time.perf_counter(), self.step
        self._train_epoch()
        seconds = time.perf_counter() - started
        row = {
            "epoch": self.epoch + 1,
            "iteration": self.iteration,
            "loss": self.loss_sum / self.steps,
            "lr": self.config.recipe.lr * self._poly(self.iteration - 1),
            "images_per_s": (self.steps - first_step) * self.config.recipe.batch_size / max(seconds, 1e-9),
            "memory_mb": peak_memory_mb(self.processes.device),
            **gates(self.network),
        }
        self.save_last()  # before validation, which may be long and may be killed
        every = self.config.val_every
        if self.validate and every and ((self.epoch + 1) % every == 0 or self.epoch + 1 == self.config.recipe.epochs):
            self._share_buffers()
            self.network.eval()
            row.update(self._validated(self.validate))
        self._finish_epoch(row)
        return row

    def _validated(self, validate: Validate) -> dict[str, Any]:
        """What validation finds. It changes nothing, so a signal ends it at once: `last` was written before."""
        self.validating = True
        try:
            if self.stop_asked and self.processes.size == 1:
                raise self._stopped()
            return validate(self.network)
        finally:
            self.validating = False

    def _finish_epoch(self, row: dict[str, Any]) -> None:
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
        score = row.get("mean_iou")  # None without ground truth
        improved = score is not None and not score <= self.best.get("mean_iou", -math.inf)
        if improved:
            self.best = {"epoch": row["epoch"], "mean_iou": score}
        # in this order an end in between loses nothing: without `last` the epoch is finished anew, and `last` has the row
        if improved and self.processes.is_first:
            self._save(self.folder.best, row, resumable=False)
        self.save_last(row, keep=not self.config.save_every)
        if not self.processes.is_first:
            return
        self.folder.append_metrics(row)
        self.log.info("%s", summary(row, self.best))
        if self.board:
            write_board(self.board, row)

    def _train_epoch(self) -> None:
        self.network.train()
        if self.config.batch_norm == "frozen":
            for module in batch_norms(self.network):
                module.eval()
        self.train_set.set_epoch(self.epoch)
        self.batches.place(self.epoch, self.step)
        bar = tqdm(
            total=self.steps, initial=self.step, disable=not self.show_bar, leave=False, desc=f"epoch {self.epoch + 1}"
        )
        with bar:
            with signals_wait():
                batches = iter(self.loader)
            for batch in batches:
                if self.stop_asked and self.processes.size == 1:
                    self._stop()
                loss, lr = self._update(batch)
                self.loss_sum += loss
                self.step += 1
                every = self.config.save_every
                if every and self.iteration % every == 0 and self.step < self.steps:
                    self.save_last()
                memory = peak_memory_mb(self.processes.device)
                rate = (bar.format_dict["rate"] or 0) * self.config.recipe.batch_size
                bar.set_postfix_str(
                    f"loss {loss:.3f}, lr {lr:.2e}, {rate:.1f} images/s, {memory:.0f} MB", refresh=False
                )
                bar.update()

    def _update(self, batch: dict[str, Any]) -> tuple[float, float]:
        """One step of SGD; returns the loss, over all processes, and the base learning rate."""
        config, device = self.config, self.processes.device
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        image = batch["image"].to(device, non_blocking=True, memory_format=layout)
        mask = batch["mask"].to(device, non_blocking=True)
        lr = config.recipe.lr * self._poly(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]

        self.names = batch["name"]
        counted = (mask != IGNORE).sum() if self.weights is None else self.weights[mask].sum()
        valid = self.processes.total(counted)[0].clamp(min=1e-6).to(torch.float32)
        dtype = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.amp]
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = self.model(image)
        by_class = None if self.weights is None else self.weights[: logits.shape[1]]
        errors = F.cross_entropy(logits.float(), mask, by_class, ignore_index=IGNORE, reduction="sum")
        # pixels count alike over all processes; data parallel training averages gradients, hence the factor
        loss = errors * self.processes.size / valid
        if config.crf_loss:
            loss = loss + config.crf_loss * crf_loss(logits, image * self.grey_levels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        # the device works on the backward while this waits for the loss: one wait a step, before weights change
        total, stop = self.processes.total(loss.detach() / self.processes.size, float(self.stop_asked)).tolist()
        if not math.isfinite(total):
            self._diverge(batch["name"], total, lr)
        if config.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if stop and self.processes.size > 1:  # a signal reached some process: all stop after the same update
            self.step, self.loss_sum = self.step + 1, self.loss_sum + total
            self._stop()
        return total, lr

    def _poly(self, iteration: int) -> float:
        return poly(iteration, self.config.recipe.epochs * self.steps, self.config.recipe.power)

    def _share_buffers(self) -> None:
        # every process has updated its own running statistics; those that are saved are those to validate
        if self.processes.size > 1:
            for buffer in self.network.buffers():
                dist.broadcast(buffer, src=0)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop_asked and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C means now
        self.stop_asked = True
        if self.validating:
            raise self._stopped()

    def _stop(self) -> None:
        self.save_last()
        raise self._stopped()

    def _stopped(self) -> "Stopped":
        self.log.info("stopped by a signal at epoch %d, step %d; resume with --resume", self.epoch + 1, self.step)
        return Stopped(f"Saved {self.folder.last}. Continue with --resume {self.folder.path}.")

    def _diverge(self, names: list[str], loss: float, lr: float) -> None:
        gathered = [names] * self.processes.size
        if self.processes.size > 1:
            dist.all_gather_object(gathered, names)
        raise self._diverged(f"The loss is {loss}", [name for part in gathered for name in part], lr)

    def _diverged(self, what: str, names: list[str], lr: float) -> TrainingDiverged:
        where = {"epoch": self.epoch + 1, "step": self.step, "iteration": self.iteration, "what": what, "lr": lr}
        if self.processes.is_first:
            self.folder.write_json("diverged.json", {**where, "names": names})
        message = (
            f"{what} at epoch {self.epoch + 1}, step {self.step}, for {', '.join(names)} (saved in "
            f"{self.folder.path / 'diverged.json'}). The checkpoints are from before. Lower --lr, or set --clip."
        )
        self.log.error(message)
        return TrainingDiverged(message)

    def save_last(self, metrics: dict[str, Any] | None = None, keep: bool = True) -> None:
        """Write last.safetensors: weights, momentum and position, in one atomic step; keep: a copy, too, if configured."""
        if self.processes.is_first:
            self._save(self.folder.last, metrics or {}, resumable=True)
            if keep and self.config.keep:
                self.folder.keep(self.iteration, self.config.keep)
        self.processes.wait()

    def _save(self, path: Any, metrics: dict[str, Any], resumable: bool) -> None:
        position = {"epoch": self.epoch, "step": self.step, "loss_sum": self.loss_sum, "best": self.best}
        try:
            checkpoints.save(
                path,
                self.network,
                classes=self.train_set.classes,
                recipe=self.config.recipe.to_dict(),
                metrics=metrics,
                training={**position, "scaler": self.scaler.state_dict()} if resumable else None,
                training_tensors=self._momentum() if resumable else None,
                data=self.data,
                environment=self.environment,
            )
        except checkpoints.NotFinite as error:  # the last update broke them
            lr = self.optimizer.param_groups[0]["lr"]
            raise self._diverged("The weights are no longer finite", list(self.names), lr) from error

    def _momentum(self) -> dict[str, torch.Tensor]:
        states = {name: self.optimizer.state.get(p, {}) for name, p in self.network.named_parameters()}
        return {f"momentum.{name}": s["momentum_buffer"] for name, s in states.items() if "momentum_buffer" in s}

    def resume(self) -> None:
        """Continue from the run folder's last checkpoint; without one, from the beginning."""
        if not self.folder.last.exists():
            self.log.info("no checkpoint yet: starting from the beginning")
            return
        checkpoint = checkpoints.load(self.folder.last)
        guard.require(
            checkpoint,
            self.folder.last,
            model=self.config.model,
            options=self.config.options,
            classes=self.train_set.classes,
            preprocessing=self.config.recipe.transform,
            data=self.data,
            advice="A run continues on its own data. To start from its weights on others: --init, and a new --out.",
        )
        for key in sorted(self.environment):
            if checkpoint.environment.get(key, self.environment[key]) != self.environment[key]:
                began = checkpoint.environment[key]
                self.log.info("%s was %s, is %s: the last bits may differ", key, began, self.environment[key])
        checkpoints.load_into(self.network, checkpoint)
        for name, parameter in self.network.named_parameters():
            momentum = checkpoint.training_tensors.get(f"momentum.{name}")
            if momentum is not None:
                buffer = torch.empty_like(parameter).copy_(momentum)  # in the parameter's memory format
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        position = checkpoint.training
        self.epoch, self.step, self.loss_sum = position["epoch"], position["step"], position["loss_sum"]
        self.best = position["best"]
        if position["scaler"]:
            self.scaler.load_state_dict(position["scaler"])
        if self.processes.is_first:
            self.folder.forget_after(self.epoch)
            if checkpoint.metrics and self.epoch not in [row["epoch"] for row in self.folder.read_metrics()]:
                self.folder.append_metrics(checkpoint.metrics)
        self.log.info("resumed at epoch %d, step %d", self.epoch + 1, self.step)
