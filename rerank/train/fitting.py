"""The loop that changes weights: transformers' Trainer, with steps cut into batches by tokens and whole checkpoints.

A step learns from a fixed number of groups, computed in batches of as many tokens as fit; gradients are summed and
divided once, so how a step was cut does not show in its result.  A checkpoint is an artifact: it is there whole or not
at all, and a run that goes on from it is, on a processor with the same number of threads, the undisturbed run to the
bit.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import resource
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rerank.artifact import MANIFEST, new_artifact, verify_artifact
from rerank.errors import ArtifactError, ConfigError, ModelError
from rerank.extras import need
from rerank.train.processes import ALONE, Processes
from rerank.train.recipe import Step
from rerank.train.rollouts import seed_of

if TYPE_CHECKING:
    from rerank.train.groups import Groups
    from rerank.train.recipe import Recipe
    from rerank.train.student import Batch, Student

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"
VERSION = 1
WEIGHTS = "weights.safetensors"
_STATE = "trainer_state.json"
_WINDOW = "window.json"
"""What happened since the last line of the log."""


class Fitted(NamedTuple):
    """What a training came to."""

    steps: int
    """The last step."""
    best_step: int
    """The step whose weights the student has now."""
    best: float | None
    """The measure at that step; None where nothing was measured."""
    stopped_early: bool


class Job(NamedTuple):
    """What is trained."""

    recipe: Recipe
    student: Student
    groups: Groups
    folder: Path
    """Where checkpoints and the log go."""
    fingerprint: str
    """Of all that the result depends on."""
    measure: Callable[[], float] | None
    """How good the weights are now, higher is better."""
    advance: Callable[[int], None]
    """Told of each step."""
    processes: Processes = ALONE
    """That train it; each has a job of its own, and the first one writes."""

    @property
    def n_steps(self) -> int:
        """How many steps there are."""
        return self.recipe.n_steps(len(self.groups))

    @property
    def log(self) -> Path:
        """The file of what happened, a JSON object a line."""
        return self.folder / "metrics.jsonl"

    @property
    def completions(self) -> Path:
        """The file of what the model wrote in some steps, where it writes, a JSON object a line."""
        return self.folder / "completions.jsonl"


def mean_figures(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over the steps that have it; the highest, where its name ends in `_max`.

    >>> mean_figures([{"reward": 0.5, "length_max": 3.0}, {"reward": 1.0, "length_max": 2.0}])
    {'reward': 0.75, 'length_max': 3.0}
    """
    named: dict[str, list[float]] = {}
    for each in figures:
        for name, value in each.items():
            named.setdefault(name, []).append(value)
    return {
        name: max(values) if name.endswith("_max") else math.fsum(values) / len(values)
        for name, values in named.items()
    }


def order_of_groups(n_groups: int, n: int, seed: int) -> list[int]:
    """The numbers of `n` groups in the order that they are learnt from: every epoch all of them, shuffled anew.

    >>> order_of_groups(3, 5, seed=0)[:3] != order_of_groups(3, 5, seed=1)[:3]
    True
    >>> sorted(order_of_groups(3, 6, seed=0))
    [0, 0, 1, 1, 2, 2]
    """
    import numpy as np

    order: list[int] = []
    while len(order) < n:
        epoch = len(order) // n_groups
        order += np.random.default_rng([seed, epoch]).permutation(n_groups).tolist()
    return order[:n]


def places_of_steps(n_groups: int, per_step: int, n_steps: int, inner: int, seed: int) -> list[int]:
    """The numbers of the groups of all steps, one step's after the other's; `inner` steps in a row have the same.

    >>> places = places_of_steps(6, 2, 4, inner=2, seed=0)
    >>> places[0:2] == places[2:4], places[4:6] == places[6:8], len(set(places))
    (True, True, 4)
    """
    order = order_of_groups(n_groups, per_step * math.ceil(n_steps / inner), seed)
    starts = [step // inner * per_step for step in range(n_steps)]
    return [place for start in starts for place in order[start : start + per_step]]


def spare_places(n_groups: int, n: int, step: int, seed: int, but: Collection[int]) -> list[int]:
    """The numbers of `n` groups that a step may take beside its own (`but`), fewer where there are no more.

    >>> spare_places(4, 2, step=0, seed=0, but=(1, 3)) in ([0, 2], [2, 0])
    True
    """
    import numpy as np

    if not n:
        return []
    order = np.random.default_rng([seed, step, 1]).permutation(n_groups).tolist()
    return [place for place in order if place not in but][:n]


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, the earliest first."""
    found = [path for path in (folder / "checkpoints").glob("step-*") if (path / MANIFEST).is_file()]
    return sorted(found)


def fit(job: Job) -> Fitted:
    """What training came to; the student has the best weights after it, or the last ones where nothing is measured.

    Raises:
        ConfigError: a tracker in `report_to` that there is not, or that is not installed.
        ModelError: a loss or gradient that is not finite.
        ArtifactError: a checkpoint that cannot be written.
    """
    transformers = need("transformers", "train", "training")
    need("accelerate", "train", "training")
    recipe, optimiser = job.recipe, job.recipe.optimiser
    every = recipe.evaluation.every if recipe.evaluation is not None else None
    arguments = transformers.TrainingArguments(
        output_dir=str(job.folder),
        per_device_train_batch_size=optimiser.groups,
        gradient_accumulation_steps=1,
        max_steps=job.n_steps,
        learning_rate=optimiser.learning_rate,
        weight_decay=optimiser.weight_decay,
        lr_scheduler_type=optimiser.schedule if optimiser.schedule != "constant" else "constant_with_warmup",
        warmup_steps=int(optimiser.warmup * job.n_steps),
        # Not 0, for which nobody looks at the gradient: it may not be finite.
        max_grad_norm=optimiser.clip or math.inf,
        optim="adamw_torch",
        seed=recipe.seed,
        logging_strategy="steps",
        logging_steps=recipe.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="no",
        report_to=list(recipe.report_to) or "none",
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=job.student.device == "cpu",
        dataloader_pin_memory=False,
        ddp_backend="gloo" if job.student.device == "cpu" and job.processes.size > 1 else None,
    )
    try:
        trainer = _trainer_class()(job, arguments, every)
    except (RuntimeError, ValueError, ImportError) as error:
        if not recipe.report_to:
            raise
        raise ConfigError(f"report_to {', '.join(recipe.report_to)}: {' '.join(str(error).split())[:200]}") from error
    last = job.processes.lead(lambda: _last_checkpoint(job))
    if last is not None:
        step = _step_of(last)
        job.advance(step)
        logger.info("training goes on from step %d of %d", step, job.n_steps)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    fitted: Fitted = trainer.fitted()
    return fitted


def _last_checkpoint(job: Job) -> Path | None:
    """The checkpoint that the run goes on from; what was logged after it is forgotten."""
    found = checkpoints(job.folder)
    last = found[-1] if found else None
    for log in (job.log, job.completions):
        _keep_lines(log, 0 if last is None else _step_of(last))
    if last is not None:
        verify_artifact(last)
    return last


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _keep_lines(log: Path, step: int) -> None:
    """Leaves of a log what was written up to `step`: what came after will come again."""
    from rerank.artifact import write_text

    kept = [line for line in read_log(log) if line["step"] <= step] if step else []
    if log.is_file():
        write_text(log, "".join(json.dumps(line) + "\n" for line in kept))


def read_log(log: Path) -> list[dict[str, Any]]:
    """The whole lines of a log."""
    if not log.is_file():
        return []
    lines = log.read_text(encoding="utf-8").split("\n")
    # What follows the last line break was being written when the process ended.
    return [json.loads(line) for line in lines[:-1]]


@functools.cache
def _trainer_class() -> Any:
    """The class of trainers; made late, because its base comes with transformers."""
    import torch
    import transformers

    class Hull(torch.nn.Module):  # type: ignore[misc]  # torch leaves its type open
        """A model that is where it is to be, and whose gradients are added up here: nobody moves or wraps it."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

    class Starting(transformers.TrainerCallback):  # type: ignore[misc]
        """The last to hear that training begins."""

        def __init__(self, trainer: Fitting) -> None:
            self._trainer = trainer

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self._trainer.note_start()

    class Fitting(transformers.Trainer):  # type: ignore[misc]  # transformers comes without types here
        """Trainer for a student and a recipe.

        With several processes each has one, and all make the same steps.
        """

        def __init__(self, job: Job, arguments: Any, every: int | None) -> None:
            recipe, per_step = job.recipe, job.recipe.optimiser.groups
            places = places_of_steps(len(job.groups), per_step, job.n_steps, recipe.inner_steps, recipe.seed)
            super().__init__(
                model=job.student.trained, args=arguments, train_dataset=_Places(places), data_collator=_collate
            )
            self.remove_callback(transformers.PrinterCallback)
            self.add_callback(Starting(self))
            self.control: Any
            self._job, self._every = job, every
            self._start: float | None = None
            self._seen = 0
            self._tokens, self._documents = 0, 0
            self._figures: list[Mapping[str, float]] = []
            self._batches: list[Batch] = []
            self._samples: list[dict[str, Any]] = []
            self._since = time.perf_counter()

        # -- steps ------------------------------------------------------------

        def get_train_dataloader(self) -> Any:
            """The places of each step's groups, in every process of all of them."""
            return torch.utils.data.DataLoader(
                self.train_dataset, batch_size=self._job.recipe.optimiser.groups, collate_fn=_collate
            )

        def _move_model_to_device(self, model: Any, device: Any) -> None:
            """Nothing: it is on the student's."""

        def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:  # noqa: FBT001, FBT002
            return Hull(model)

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            """The mean loss of a step; its gradient is in the weights."""
            job, recipe, processes = self._job, self._job.recipe, self._job.processes
            model.train()
            step = self.state.global_step
            if processes.size > 1:
                # What a process drops out must not depend on what it computed before.
                torch.manual_seed(seed_of(recipe.seed, step, processes.rank))
            total = torch.zeros((), device=job.student.device)
            items = torch.zeros((), device=job.student.device)
            tokens = documents = 0
            if step % recipe.inner_steps == 0:
                own = inputs["places"].tolist()
                spare = spare_places(len(job.groups), recipe.n_spare, step, recipe.seed, own)
                groups, others = ([job.groups[place] for place in places] for places in (own, spare))
                self._batches = recipe.batches(job.student, Step(groups, step, others, processes))
            for batch in self._batches:
                loss, count = recipe.total(job.student, batch)
                if loss.requires_grad:
                    processes.backward(loss)
                total += loss.detach()
                items += count
                tokens += batch.tokens
                documents += sum(len(group.documents) for group in batch.groups)
            weights = [weight for weight in model.parameters() if weight.requires_grad]
            processes.add_gradients(weights)
            sums = processes.add(float(total), float(items), tokens, documents)
            self._tokens += int(sums[2])
            self._documents += int(sums[3])
            share = 1 / max(sums[1], 1.0)
            for weight in weights:
                if weight.grad is not None:
                    weight.grad.mul_(share)
            mean = torch.tensor(sums[0] * share, device=self.args.device)
            if not torch.isfinite(mean):
                raise self._not_finite("loss")
            told = self._batches
            if processes.size > 1:
                told = [batch for some in processes.gather(recipe.told(told)) for batch in some]
            self._samples = recipe.samples(told)
            self._figures.append({"loss": float(mean), **recipe.figures(told)})
            return mean

        def _clip_grad_norm(self, model: Any) -> Any:
            norm = super()._clip_grad_norm(model)
            if norm is not None and not math.isfinite(float(norm)):
                raise self._not_finite("gradient")
            return norm

        def _not_finite(self, what: str) -> ModelError:
            kept = checkpoints(self._job.folder)
            good = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
            advice = "lower optimiser.learning_rate"
            if self._job.student.precision != "float32":
                advice += ", or take precision: float32"
            return ModelError(f"step {self.state.global_step + 1}: the {what} is not a finite number; {good}; {advice}")

        def floating_point_ops(self, inputs: Any) -> int:
            return 0

        # -- what happens beside steps ------------------------------------------------------------

        def _maybe_log_save_evaluate(
            self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *rest: Any, **more: Any
        ) -> None:
            step, last = self.state.global_step, self.args.max_steps
            was = self._globalstep_last_logged
            if step == last and step > was:
                self.control.should_log = True
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *rest, **more)
            if step == self._seen:
                return  # the end of an epoch, after its last step
            self._seen = step
            self._job.advance(1)
            measured = self._every is not None and (step % self._every == 0 or step == last)
            if measured:
                self.evaluate()
            if measured or step % self._job.recipe.save_every == 0 or step == last:
                self._save_checkpoint(model, trial)

        def train(self, resume_from_checkpoint: str | None = None, **more: Any) -> Any:
            """As the base does, after the first measurement; a run that has stopped early does nothing more."""
            if resume_from_checkpoint is not None:
                state = transformers.TrainerState.load_from_json(str(Path(resume_from_checkpoint) / _STATE))
                if self._is_over(state):
                    self.state = state
                    self._load_from_checkpoint(resume_from_checkpoint)
                    return None
            self._seen = 0
            evaluation = self._job.recipe.evaluation
            if resume_from_checkpoint is None and evaluation is not None and evaluation.at_start:
                self.state.max_steps = self.args.max_steps
                self._start = self._measured()
            else:
                self._start = None
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **more)

        def _init_training_state(self, *given: Any, **more: Any) -> Any:
            found = super()._init_training_state(*given, **more)
            self._seen = self.state.global_step
            return found

        def note_start(self) -> None:
            """Tells the first measurement, once trackers know what they track."""
            if self._start is not None:
                self._note(self._start)

        def _measured(self) -> float:
            measure = self._job.measure
            if measure is None:
                raise ModelError("nothing says how the weights are measured")
            # Whatever a pipeline draws must not move what training draws.
            with torch.random.fork_rng(devices=[]), self._job.student.resting():
                return measure()

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            """The measure of the weights as they are."""
            started = time.perf_counter()
            value = self._measured()
            self._since += time.perf_counter() - started
            return self._note(value)

        def _note(self, value: float) -> dict[str, float]:
            evaluation = self._job.recipe.evaluation
            name = evaluation.measure if evaluation is not None else "measure"
            state, step = self.state, self.state.global_step
            if step and (state.best_metric is None or value > state.best_metric):
                state.best_metric, state.best_global_step = value, step
            metrics = {f"eval_{name}": value}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            if self._is_over(state):
                logger.info("step %d: no better %s for a while; training stops", step, name)
                self.control.should_training_stop = True
            return metrics

        def _is_over(self, state: Any) -> bool:
            """Whether the measure has not risen for so long that training stops."""
            evaluation = self._job.recipe.evaluation
            if evaluation is None or evaluation.patience is None:
                return False
            steps: int = state.global_step - (state.best_global_step or 0)
            return steps >= evaluation.patience * evaluation.every

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            """Writes a line, and tells trackers."""
            if "loss" in logs:
                seconds = max(time.perf_counter() - self._since, 1e-9)
                logs["tokens_per_second"] = round(self._tokens / seconds, 1)
                logs["documents"] = self._documents
                logs["memory_mb"] = round(_memory_mb(self._job.student.device), 1)
                logs.update(mean_figures(self._figures))
                self._figures = []
                self._tokens, self._documents, self._since = 0, 0, time.perf_counter()
            elif "train_runtime" in logs:
                return
            super().log(logs, start_time)
            if not self._job.processes.is_first:
                return
            line = {"step": self.state.global_step, **{k: v for k, v in logs.items() if k != "total_flos"}}
            self._append(self._job.log, [json.dumps(line)])
            if self._samples and "loss" in logs:
                told = ({"step": self.state.global_step, **sample} for sample in self._samples)
                self._append(self._job.completions, [json.dumps(one, ensure_ascii=False) for one in told])
            logger.info("step %d: %s", self.state.global_step, ", ".join(f"{k} {v:.4g}" for k, v in logs.items()))

        def _append(self, log: Path, lines: Sequence[str]) -> None:
            try:
                with log.open("a", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in lines)
            except OSError as error:
                raise self._unwritten(f"{log}: cannot be written ({error.strerror})") from error

        # -- checkpoints ------------------------------------------------------------

        def _unwritten(self, what: str) -> ArtifactError:
            kept = checkpoints(self._job.folder)
            good = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
            return ArtifactError(f"{what}; {good}: make room, and start the same command again to go on from there")

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            self._job.processes.lead(self._write_checkpoint)

        def _write_checkpoint(self) -> None:
            job, step = self._job, self.state.global_step
            path = job.folder / "checkpoints" / f"step-{step:07d}"
            if path.is_dir():
                return
            try:
                with new_artifact(path, CHECKPOINT, VERSION, job.fingerprint) as draft:
                    job.student.save_weights(draft.path / WEIGHTS)
                    self._save_optimizer_and_scheduler(str(draft.path))
                    if job.processes.size == 1:
                        self._save_rng_state(str(draft.path))
                    for callback in [self.control]:
                        self.state.stateful_callbacks[type(callback).__name__] = callback.state()
                    self.state.save_to_json(str(draft.path / _STATE))
                    (draft.path / _WINDOW).write_text(json.dumps(self._window()), encoding="utf-8")
            # Each library has its own error for a disk that is full.
            except (OSError, RuntimeError, _safetensors_error()) as error:
                reason = " ".join(str(error).split())[:200]
                raise self._unwritten(f"{path}: the checkpoint cannot be written ({reason})") from error
            best = self.state.best_global_step
            for old in checkpoints(job.folder)[:-1]:
                if old.name != f"step-{best or 0:07d}":
                    shutil.rmtree(old)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            self._job.student.load_weights(Path(resume_from_checkpoint) / WEIGHTS)
            window = Path(resume_from_checkpoint) / _WINDOW
            if window.is_file():  # not in the checkpoints of earlier versions
                found = json.loads(window.read_text(encoding="utf-8"))
                self._figures, self._tokens, self._documents = found["figures"], found["tokens"], found["documents"]
                self._since = time.perf_counter() - found["seconds"]

        def _window(self) -> dict[str, Any]:
            seconds = time.perf_counter() - self._since
            return {
                "figures": self._figures, "tokens": self._tokens, "documents": self._documents, "seconds": seconds,
            }  # fmt: skip

        def fitted(self) -> Fitted:
            """What came out; the best weights are loaded."""
            state = self.state
            best = state.best_global_step if self._every is not None else None
            path = self._job.folder / "checkpoints" / f"step-{best or 0:07d}"
            if best is not None and best != state.global_step and path.is_dir():
                self._job.student.load_weights(path / WEIGHTS)
            return Fitted(
                state.global_step,
                state.global_step if best is None else best,
                state.best_metric if best is not None else None,
                state.global_step < self.args.max_steps,
            )

    return Fitting


class _Places:
    """The numbers of groups, as a data set of torch."""

    def __init__(self, places: Sequence[int]) -> None:
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> int:
        return self._places[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)


def _collate(places: Sequence[int]) -> dict[str, Any]:
    import torch

    return {"places": torch.tensor(places)}


def _memory_mb(device: str) -> float:
    """The most that was taken up to now: of the accelerator's memory, else of the process's."""
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.max_memory_allocated()) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _safetensors_error() -> type[Exception]:
    from safetensors import SafetensorError

    error: type[Exception] = SafetensorError
    return error
