"""The training loop: prepare, epochs of steps with a validation after each, test split at the end.

Letters: n captions and b clips of this process, N and B of all processes together, S samples, T
frames, D dimensions.
"""

import math
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from retrieval.base.errors import UserError
from retrieval.base.exchange import (
    any_process,
    gather_columns,
    gather_rows,
    gather_texts,
    world_size,
)
from retrieval.base.files import write_json
from retrieval.base.processes import peak_memory
from retrieval.base.progress import bar
from retrieval.base.stopping import Interrupted, StopRequest, stop_on_signals
from retrieval.config import Config
from retrieval.data import ClipSplit, usable_workers
from retrieval.data.schema import EVALUATION
from retrieval.evaluation.result import EvaluationResult, evaluate_split
from retrieval.models.build import bound_memory
from retrieval.models.card import write_card
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.record import ScoreRecord
from retrieval.moments.split import SplitMoments
from retrieval.training import checkpoint
from retrieval.training.micro_batches import backward_in_parts
from retrieval.training.moments import evaluate_moments, moment_batch_loss
from retrieval.training.optim import set_learning_rates
from retrieval.training.setup import Run, prepare
from retrieval.training.states import latest_state

# For fp16, as fairseq's --min-loss-scale: about 30 halvings below the initial 65,536.
SMALLEST_LOSS_SCALE = 1e-4


def train(config: Config, resume: bool = False, overwrite: bool = False) -> None:
    """Train a model; leave RUN/best, RUN/last and RUN/metrics.json, where RUN is train.output.

    Args:
        config: All settings (retrieval.config.load_config).
        resume: Continue from the newest state in RUN.
        overwrite: Delete the run in RUN and start anew.

    Raises:
        UserError: Settings, files or hardware do not fit, or a loss is not finite.
        Interrupted: SIGINT or SIGTERM came; the state was saved.
    """
    folder = Path(config.train.output)
    if resume and (folder / "metrics.json").exists():
        checkpoint.check_unchanged(folder, config)
        print(
            f"{folder} is finished: see {folder / 'metrics.json'}; its weights start another run by"
            f" train.init_from={folder / 'last'}"
        )
        return
    with stop_on_signals() as stop:
        run = prepare(config, folder, resume, overwrite)
        try:
            if stop.signum:
                raise Interrupted(stop.signum)
            if config.train.validate_first and run.progress.global_step == 0:
                # the evaluation loader draws from the global generator; keep training's random
                # numbers unchanged
                with torch.random.fork_rng(devices=[]):
                    validate(run)
            while run.progress.epoch < config.train.epochs:
                stop.at_once = False
                train_epoch(run, stop)
                save_state(run)
                stop.at_once = True  # nothing is lost from here to the next step
                if stop.signum:
                    raise Interrupted(stop.signum)
                validate(run)
                run.progress.next_epoch()
                if run.out_of_steps or run.out_of_patience:
                    break
            score_test_split(run)
        finally:
            run.tracker.close()
            if run.lock is not None:
                run.lock.close()


def train_epoch(run: Run, stop: StopRequest) -> None:
    """Train the rest of the current epoch, from progress.step on."""
    progress, settings = run.progress, run.config.train
    run.wrapped.train()
    run.batches.start(progress.epoch, progress.step)
    last_step = run.steps_per_epoch  # of this epoch
    if settings.max_steps is not None:
        steps_left = max(0, settings.max_steps - progress.global_step)
        last_step = min(last_step, progress.step + steps_left)
    clock, num_clips = time.perf_counter(), 0
    epoch = f"epoch {progress.epoch + 1}/{settings.epochs}"
    with bar(total=last_step, initial=progress.step, desc=epoch, unit="step") as shown:
        for batch in run.loader if not run.out_of_steps else ():
            loss, grad_norms = train_step(run, batch)
            progress.add_loss(loss)
            num_clips += len(batch["captions"]) * run.accelerator.num_processes
            shown.set_postfix(loss=f"{loss:.3f}", refresh=False)
            shown.update()
            if progress.global_step % settings.log_every_steps == 0:
                log_step(run, loss, grad_norms, num_clips / (time.perf_counter() - clock))
                clock, num_clips = time.perf_counter(), 0
            if any_process(bool(stop.signum), run.accelerator.device):
                save_state(run)
                raise Interrupted(stop.signum or signal.SIGTERM)
            if run.out_of_steps:
                break
            is_due = progress.step % settings.save_every_steps == 0
            if is_due and progress.step < run.steps_per_epoch:  # train() saves at the end
                save_state(run)


def train_step(run: Run, batch: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """Take one optimizer step on the batch of all processes.

    Args:
        run: A prepared run; its weights change.
        batch: This process's part of the batch, from run.loader: waveform (b, S), lengths (b,),
            captions (n), clips (n,), pairs (n,).

    Returns:
        The loss of the whole batch, and the gradient norm of each parameter group by its name,
        before clipping.

    Raises:
        UserError: Loss or gradients are not finite; the weights are as before.
    """
    accelerator, settings = run.accelerator, run.config.optimizer
    epoch = run.progress.epoch + run.progress.step / run.steps_per_epoch
    set_learning_rates(run.optimizer, epoch, settings.schedule.model_dump())
    run.optimizer.zero_grad()
    if run.micro_batch_size is None:
        text, frames, mask = run.wrapped(batch)  # (n, D), (b, T, D), (b, T)
        loss = batch_loss(run, batch, text, frames, mask)
        accelerator.backward(loss * world_size())  # retrieval/base/exchange.py says why
    else:
        loss_of = partial(batch_loss, run, batch)
        loss = backward_in_parts(accelerator, run.wrapped, batch, run.micro_batch_size, loss_of)
    # once per step: GradScaler refuses a second time, as in accelerator.clip_grad_norm_
    accelerator.unscale_gradients(run.optimizer)
    norms = {}
    for group in run.optimizer.param_groups:
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        norms[group["name"]] = torch.nn.utils.get_total_norm(gradients).float()
    # one copy from the GPU, which waits for it, in place of one a number
    loss_value, *norm_values = torch.stack([loss.detach(), *norms.values()]).tolist()
    grad_norms = dict(zip(norms, norm_values, strict=True))
    _check_finite(run, loss_value, grad_norms)
    if settings.max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), settings.max_grad_norm)
    run.optimizer.step()
    # A step that fp16 skipped changes neither the weights nor their average. Fused AdamW leaves
    # Accelerate's step_was_skipped False.
    if run.average is not None and all(map(math.isfinite, grad_norms.values())):
        run.average.update()
    return loss_value, grad_norms


def batch_loss(
    run: Run, batch: dict[str, Any], text: torch.Tensor, frames: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Return the loss of the batch of all processes, the same scalar on each.

    Args:
        run: The run, for its model, loss and device.
        batch: clips int64 (n,) and pairs int64 (n,) of this process's part of the batch.
        text: (n, D), encodings of its captions.
        frames: (b, T, D), encodings of its clips.
        mask: bool (b, T), True = valid frame.
    """
    if run.objective is None:
        return moment_batch_loss(run, batch, text, frames, mask)
    with run.accelerator.autocast():
        block = run.model.score(gather_texts(text), frames, mask)  # (N, b)
    scores = gather_columns(block)  # (N, B)
    numbers = torch.stack([batch["clips"], batch["pairs"]], dim=1).to(run.accelerator.device)
    clips, pairs = gather_rows(numbers).unbind(dim=1)  # (N,) each
    return run.objective(run.model, scores, clips, pairs)


def _check_finite(run: Run, loss: float, grad_norms: dict[str, float]) -> None:
    """Raise UserError if the coming optimizer step would make the weights infinite or NaN.

    With fp16 the gradient scaler skips a step with infinite gradients and halves its scale. This is
    accepted until the scale is below SMALLEST_LOSS_SCALE. A skipped step counts as a step: its
    batch is not repeated, and the schedule advances.
    """
    scaler, progress = run.accelerator.scaler, run.progress
    is_skipped = scaler is not None and scaler.get_scale() > SMALLEST_LOSS_SCALE
    if not math.isfinite(loss):
        found = f"loss is {loss}"
    else:
        infinite = [name for name, norm in grad_norms.items() if not math.isfinite(norm)]
        if not infinite or is_skipped:
            return
        found = f"gradient norm of {infinite[0]} is {grad_norms[infinite[0]]}"
    kept = "no best model yet"
    if progress.has_best:
        kept = f"{run.folder / 'best'} of epoch {progress.best_epoch + 1}"
    remedies = ["a lower learning rate"]
    remedies += ["optimizer.max_grad_norm=1"] * (run.config.optimizer.max_grad_norm is None)
    remedies += ["train.mixed_precision=no"] * (run.accelerator.mixed_precision != "no")
    raise UserError(
        f"training stopped at epoch {progress.epoch + 1}, step {progress.step + 1}: {found}; kept:"
        f" {kept}, state {latest_state(run.folder)}; try {' or '.join(remedies)}"
    )


def log_step(run: Run, loss: float, grad_norms: dict[str, float], clips_per_second: float) -> None:
    """Write the curves of one step to the trackers."""
    if run.accelerator.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = peak_memory()
    scalars = {
        "train/loss": loss,
        "train/temperature": run.model.temperature.item(),
        "train/clips_per_second": clips_per_second,
        "train/memory_gib": peak / 2**30,
    }
    if run.accelerator.scaler is not None:
        # halved by every step that fp16 skips
        scalars["train/loss_scale"] = run.accelerator.scaler.get_scale()
    scalars |= {f"lr/{group['name']}": group["lr"] for group in run.optimizer.param_groups}
    scalars |= {f"grad_norm/{name}": norm for name, norm in grad_norms.items()}
    run.tracker.scalars(run.progress.global_step, scalars)


def evaluate_model(
    run: Run, model: DualEncoder, split: ClipSplit
) -> EvaluationResult | SplitMoments:
    """Score a whole split; every process returns the result.

    For moments the validation split also chooses the threshold of the model's head.
    """
    if run.objective is None:
        return evaluate_moments(run, model, split, tune=split is run.validation)
    settings = run.config.evaluation
    return evaluate_split(
        model,
        split,
        audio_batch_size=settings.audio_batch_size,
        text_batch_size=settings.text_batch_size,
        num_workers=usable_workers(run.config.data.num_workers),
        autocast=run.accelerator.autocast,
        bf16_scores=settings.bf16_validation and split is run.validation,
    )


def validate(run: Run) -> None:
    """Score the validation split; write RUN/last, and RUN/best after the best epoch so far.

    The best epoch has the highest text-to-audio mAP@10, for moments R1@0.7; of equal ones the
    first. With train.ema_decay the averaged weights are scored and written. Before the first step
    the epoch is called 0.
    """
    with run.scored_weights():
        _validate(run)
    run.accelerator.wait_for_everyone()


def _validate(run: Run) -> None:
    result = evaluate_model(run, run.model, run.validation)
    metrics, progress = result.main, run.progress
    step, num_pictures = progress.global_step, run.config.evaluation.num_pictures
    epoch, title = progress.epoch + 1, f"epoch {progress.epoch + 1}"
    if step == 0:
        epoch, title = 0, "epoch 0 (before training)"
        progress.before_training = result.metrics
    percent = ", ".join(f"{name} {100 * value:.2f} %" for name, value in metrics.items())
    run.accelerator.print(f"{title}: validation {percent}")
    if run.objective is None:
        run.tracker.scalars(step, result.curves)
        run.tracker.moment_examples(step, run.model, run.pictured, num_pictures)
    else:
        run.tracker.validation(step, result)
        run.tracker.attention_examples(step, run.model, run.pictured, num_pictures)
    is_best = metrics[result.best_by] > progress.best_map
    if is_best:
        progress.best_map, progress.best_epoch = metrics[result.best_by], epoch - 1
    if run.accelerator.is_main_process:
        scores = ScoreRecord(epoch=epoch, metrics=result.metrics)
        record = run.record.updated(validation=scores)
        for name in ("best", "last") if is_best else ("last",):
            checkpoint.save_model(run.model, run.folder / name, record)
        run.history.add(epoch, step, _history_of(run, result))


def _history_of(run: Run, result: EvaluationResult) -> dict[str, float | None]:
    """Return a line's losses, learning rates and metrics; before training it has metrics only."""
    progress, groups = run.progress, run.optimizer.param_groups
    values = {"train/mean_loss": progress.loss_sum / max(1, progress.num_losses)}
    values |= {f"lr/{group['name']}": group["lr"] for group in groups}
    if progress.global_step == 0:
        values = dict.fromkeys(values)
    return values | result.curves


def score_test_split(run: Run) -> None:
    """Score the best and the last model on the test split, once, at the end of the run.

    RUN/metrics.json marks the run as finished; its states are deleted.
    """
    if not (run.folder / "last").exists():
        validate(run)
    best_epoch, best_map = run.progress.best_epoch + 1, run.progress.best_map
    best_by = (EvaluationResult if run.objective else SplitMoments).best_by
    final: dict[str, Any] = {"best_epoch": best_epoch, f"validation_{best_by}": best_map}
    if run.progress.before_training:
        final["validation_before_training"] = run.progress.before_training
    for name in ("best", "last") if run.test is not None else ():
        model = DualEncoder.from_pretrained(run.folder / name).to(run.accelerator.device)
        model.caption_features = run.model.caption_features
        bound_memory(model, run.config)
        result = evaluate_model(run, model, run.test)
        final[name], final["chance"] = result.metrics, result.chance
        run.accelerator.print(f"{run.folder / name}, {EVALUATION} split\n{result.table()}")
        if run.accelerator.is_main_process:
            record = model.record.updated(evaluation=ScoreRecord(metrics=result.metrics))
            write_card(run.folder / name, model.architecture, record)
    run.tracker.final(final)
    stopped = ""
    if run.out_of_patience and run.progress.epoch < run.config.train.epochs:
        reason = f"no better validation {best_by} in {run.progress.epochs_without_gain} epoch(s)"
        final["stopped"] = {"epoch": run.progress.epoch, "reason": f"train.patience: {reason}"}
        stopped = f" of epoch {run.progress.epoch}, {reason}"
    if run.accelerator.is_main_process:
        write_json(run.folder / "metrics.json", final)
        shutil.rmtree(run.folder / "states", ignore_errors=True)
        print(
            f"{run.folder}: finished at step {run.progress.global_step}{stopped}; best of epoch"
            f" {best_epoch}, validation {best_by} {100 * best_map:.2f} %; metrics.json, best and"
            " last"
        )
    run.accelerator.wait_for_everyone()


def save_state(run: Run) -> None:
    """Save a state that --resume continues from."""
    checkpoint.save_state(run.accelerator, run.folder, run.progress)
