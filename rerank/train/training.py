"""A training from recipe to model: groups, student, steps, the best weights as an artifact, card and report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank import __version__
from rerank.adapters.artifact import KIND, VERSION, AdapterFacts
from rerank.adapters.quantised import check_quantises
from rerank.artifact import fingerprint, lock, new_artifact, write_json, write_text
from rerank.config import stage_tree
from rerank.engines.text_model import torch_threads
from rerank.errors import ArtifactError, ConfigError
from rerank.models import resolve_model
from rerank.models.checksums import model_fingerprint
from rerank.runtime import Runtime
from rerank.stage import Stage
from rerank.train.fitting import Fitted, Job, fit, read_log
from rerank.train.groups import Groups, build_groups
from rerank.train.outcome import card_text, report_text
from rerank.train.processes import Processes, together
from rerank.train.recipe import Recipe
from rerank.train.student import Student
from rerank.train.validation import Validator

logger = logging.getLogger(__name__)

STATE = "training.json"
"""The file of a run's folder that says what is trained there."""


@dataclass(frozen=True)
class Trained:
    """What a training left."""

    folder: Path
    """The run's folder: the model or adapter, metrics.jsonl, report.html, README.md, recipe.yaml."""
    model: Path
    """The folder of the adapter, or of the whole model, as engines take it."""
    fitted: Fitted
    facts: dict[str, Any]
    """What the card says."""


def train(recipe: Recipe, out: Path, runtime: Runtime | None = None, *, name: str = "") -> Trained:
    """Trains what `recipe` says and leaves it in the folder `out`.

    A run that was interrupted goes on from its last checkpoint; one that is finished is given back as it is.  Where a
    launcher (accelerate launch, torchrun) started several processes, they train together, and each calls this.

    Args:
        recipe: what is trained, on what, how.
        out: a new folder, or that of the same recipe's earlier run.
        runtime: its home, device and threads; default that of the enclosing `with`, else a new one.
        name: what the model is called in its card.

    Raises:
        ConfigError: parts of the recipe that do not fit, or a folder of another recipe.
        DataError: data that nothing can be learnt from.
        ModelError: a model that cannot be trained, or a loss that is not finite.
        ArtifactError: a folder or checkpoint that cannot be written.
    """
    with contextlib.ExitStack() as stack:
        active = runtime if runtime is not None else stack.enter_context(Runtime.current_or_new())
        processes = stack.enter_context(together(active.device))
        if processes.is_first:
            stack.enter_context(lock(out, "trains"))
        stack.enter_context(torch_threads(active.threads))
        return _train(recipe, out, active, name or out.name, processes)


def _train(recipe: Recipe, out: Path, runtime: Runtime, name: str, processes: Processes) -> Trained:
    started = time.perf_counter()
    recipe.check_before(processes)
    if recipe.quantise is not None:
        check_quantises(recipe.quantise)
    groups = processes.lead(lambda: build_groups(recipe.groups, runtime))
    processes.lead(lambda: _fetch(recipe, runtime))
    student = recipe.student(runtime, processes)
    validator = None
    if recipe.evaluation is not None:
        evaluation = recipe.evaluation
        validator = processes.first(lambda: Validator(evaluation, student, runtime, recipe.seed, processes))
    key = run_fingerprint(recipe, groups, student)
    _check_same(key, processes)
    done = processes.lead(lambda: _claim(out, key))
    if done is not None:
        return done
    if processes.is_first:
        write_text(out / "recipe.yaml", recipe.to_yaml(name))
    n_steps = recipe.n_steps(len(groups))
    shared: frozenset[Stage] = validator.shared() if validator is not None else frozenset()
    with runtime.sharing(shared), runtime.progress("training", n_steps, "steps") as advance:
        fitted = fit(Job(recipe, student, groups, out, key, validator, advance, processes))

    def finish() -> Trained:
        seconds = time.perf_counter() - started
        facts = _facts(recipe, groups, student, validator, fitted, name, seconds, processes)
        model = _save(recipe, student, out, key, name, fitted, runtime.home / "models" / "checksums.json")
        write_json(out / "facts.json", facts)
        log = read_log(out / "metrics.jsonl")
        write_text(out / "README.md", card_text(facts, groups.card(), log))
        write_text(out / "report.html", report_text(facts, groups.card(), log))
        write_json(out / STATE, {"fingerprint": key, "finished": True, "model": model.name, "fitted": fitted._asdict()})
        return Trained(out, model, fitted, facts)

    return processes.lead(finish)


def _fetch(recipe: Recipe, runtime: Runtime) -> None:
    """Brings the model to where every process finds it."""
    if isinstance(name := getattr(recipe.engine, "model", None), str):
        resolve_model(name, getattr(recipe.engine, "revision", None), runtime.home)


def _check_same(key: str, processes: Processes) -> None:
    """Returns when all processes train the same.

    Raises:
        ConfigError: they do not.
    """
    keys = processes.gather(key)
    other = next((rank for rank, found in enumerate(keys) if found != keys[0]), None)
    if other is not None:
        raise ConfigError(
            f"process {other} has another recipe, model, data or version than process 0; give all the same files, and "
            "let machines share RERANK_HOME and the folder (--out)"
        )


def run_fingerprint(recipe: Recipe, groups: Groups, student: Student) -> str:
    """SHA-256 of all that a training's result depends on: what is only told of it, and how often, is left out."""
    tree = stage_tree(dataclasses.replace(recipe, groups=(), report_to=()), hashes=True)
    for fields in tree.values():
        fields |= {"log_every": 1, "save_every": 1}
    prompt = student.prompt.fingerprint if student.prompt is not None else None
    return fingerprint([__version__, tree, groups.fingerprint, student.folder.fingerprint, prompt, student.precision])


def _claim(out: Path, key: str) -> Trained | None:
    """Takes the folder for this training; gives back what an earlier one finished."""
    state = out / STATE
    if state.is_file():
        found = json.loads(state.read_text(encoding="utf-8"))
        if found.get("fingerprint") != key:
            raise ConfigError(
                f"{out}: holds the training of another recipe, model or data; give another folder (--out), or delete it"
            )
        if found.get("finished"):
            logger.info("%s: is finished", out)
            facts = json.loads((out / "facts.json").read_text(encoding="utf-8"))
            return Trained(out, out / found["model"], Fitted(**found["fitted"]), facts)
        return None
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out}: has files in it, but no training of this program; give another folder (--out)")
    try:
        write_json(state, {"fingerprint": key, "finished": False})
    except OSError as error:
        raise ArtifactError(f"{out}: cannot be written ({error.strerror}); give another folder (--out)") from error
    return None


def _save(recipe: Recipe, student: Student, out: Path, key: str, name: str, fitted: Fitted, memory: Path) -> Path:
    """Writes the weights that the student has now; `memory` is the file that remembers checksums."""
    if recipe.adapter is None:
        folder = out / "model"
        with new_artifact(folder, "model", 1, key, {"base": student.name, "step": fitted.best_step}) as draft:
            student.save_model(draft.path)
        return folder
    folder = out / "adapter"
    facts = AdapterFacts(
        engine=recipe.engine.label,
        base=student.name,
        base_fingerprint=student.folder.fingerprint,
        base_revision=student.folder.revision,
        method=stage_tree(recipe.adapter),
        prompt=student.prompt.name if student.prompt is not None else None,
        prompt_fingerprint=student.prompt.fingerprint if student.prompt is not None else None,
        max_tokens=recipe.max_tokens,
        heads=student.heads,
        recipe=recipe.published(name),
        step=fitted.best_step,
        quantised=recipe.quantise,
    )
    with new_artifact(folder, KIND, VERSION, config=facts.tree()) as draft:
        student.save_model(draft.path)
        draft.fingerprint = model_fingerprint(draft.path, memory)
    return folder


def _facts(
    recipe: Recipe,
    groups: Groups,
    student: Student,
    validator: Validator | None,
    fitted: Fitted,
    name: str,
    seconds: float,
    processes: Processes,
) -> dict[str, Any]:
    trained, every = student.n_weights()
    evaluation = recipe.evaluation
    return {
        "name": name,
        "kind": recipe.label,
        "engine": recipe.engine.label,
        "base": student.name,
        "base_source": student.folder.source,
        "base_revision": student.folder.revision,
        "base_fingerprint": student.folder.fingerprint,
        "adapter": stage_tree(recipe.adapter) if recipe.adapter is not None else None,
        "prompt": student.prompt.name if student.prompt is not None else None,
        "prompt_fingerprint": student.prompt.fingerprint if student.prompt is not None else None,
        "loss": recipe.loss_told,
        "groups": len(groups),
        "groups_fingerprint": groups.fingerprint,
        "weights": every,
        "trained_weights": trained,
        "precision": student.precision,
        "quantised": recipe.quantise,
        "device": student.device,
        "processes": processes.size,
        "divided": processes.shards is not None,
        "steps": fitted.steps,
        "best_step": fitted.best_step,
        "stopped_early": fitted.stopped_early,
        "measure": evaluation.measure if evaluation is not None else None,
        "best": fitted.best,
        "measured_on": validator.names if validator is not None else [],
        "pipeline": repr(evaluation.pipeline) if evaluation is not None else None,
        "seconds": round(seconds, 1),
        "recipe": recipe.published(name),
        "rerank": __version__,
        "versions": dict(_versions()),
    }


def _versions() -> Iterator[tuple[str, str]]:
    from importlib.metadata import version

    for package in ("torch", "transformers", "peft", "accelerate"):
        yield package, version(package)
