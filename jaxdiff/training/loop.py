"""The training loop: from a source of activations to calibrated dictionaries in folders."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxdiff import checkpoint
from jaxdiff.activations._devices import merge_states
from jaxdiff.activations.normalization import Normalization
from jaxdiff.activations.source import ActivationSource
from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries import files
from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.errors import JaxdiffError, Preempted
from jaxdiff.mesh import barrier, make_mesh, sharding, to_host
from jaxdiff.progress import log, progress
from jaxdiff.training import preemption, settings
from jaxdiff.training.calibration import Evaluation, Validation, calibrate, evaluate
from jaxdiff.training.compiled import check_mesh
from jaxdiff.training.course import Course
from jaxdiff.training.feed import Feed


@dataclass(frozen=True)
class TrainResult:
    """A trained dictionary and how it came about.

    Attributes:
        dictionary: In the normalised space, with its threshold.
        normalization: Maps raw activations to that space.
        evaluation: On validation, with the inference rule.
        steps: Optimizer steps [steps].
        tokens: Activations trained on [tokens].
        l1_weight: L1 weight of the last step; None unless a penalty decides L0.
        history: Logged metrics, one record each `log_every` steps.
    """

    dictionary: Dictionary
    normalization: Normalization
    evaluation: Evaluation
    steps: int
    tokens: int
    l1_weight: float | None
    history: list[dict[str, Any]]


def train(
    config: DictionaryConfig,
    train: TrainConfig,
    source: ActivationSource,
    validation: Validation,
    *,
    folder: Path,
    seed: int,
    mesh: Mesh | None = None,
) -> TrainResult:
    """Trains a dictionary, calibrates its threshold on held-out activations, and saves it.

    Called again with the same arguments, it goes on from the last checkpoint in `folder`; a run
    that was killed at any point ends with the same bits as one that was not. When the folder
    already holds the result, that is read.

    Args:
        config: Settings of the dictionary.
        train: Settings of training.
        source: Shuffled activations in raw space, with their normalisation.
        validation: Makes a pass over held-out activations in raw space; masked rows are ignored.
        folder: Where checkpoints, history and the result are kept.
        seed: Seed of the source's order and, unless the config has one, of initial directions.
        mesh: Devices, with axes `data` and `latent`; one device when None.

    Returns:
        The result, which is also in `folder`.

    Raises:
        JaxdiffError: If the mesh does not fit, the source ends early, a batch (unless such are
            skipped) or the loss is not finite, or the folder belongs to a run with other settings.
        Preempted: If SIGTERM came; the step under way is finished and saved.
    """
    several = train_together({folder: config}, train, source, validation, seed=seed, mesh=mesh)
    return several[folder]


def train_together(
    configs: Mapping[Path, DictionaryConfig],
    train: TrainConfig,
    source: ActivationSource,
    validation: Validation,
    *,
    seed: int,
    mesh: Mesh | None = None,
) -> dict[Path, TrainResult]:
    """Trains several dictionaries in one pass over the activations.

    Each batch is read once, and each dictionary takes its step on it in turn, so that each becomes
    what `train` would make of it, to the bit. All their states are on the devices at once.

    Args:
        configs: Settings of the dictionaries, by the folder that each is kept in.
        train: As in `train`; the same for all.
        source: As in `train`.
        validation: As in `train`.
        seed: As in `train`.
        mesh: As in `train`.

    Returns:
        The results, by folder.

    Raises:
        JaxdiffError: As `train` does.
        Preempted: As `train` does.
    """
    mesh = make_mesh(1, 1) if mesh is None else mesh
    for config in configs.values():
        check_mesh(config, train, mesh)
    results, courses = {}, []
    for folder, config in configs.items():
        folder.mkdir(parents=True, exist_ok=True)
        first = seed if config.seed is None else config.seed
        own = settings.record(config, train, seed)
        if (folder / f"{files.NAME}.json").exists():
            results[folder] = read_result(folder, own)
            checkpoint.remove(folder / "checkpoints", train.keep_every)
        else:
            course = Course(
                config, train, source.shape, folder=folder, seed=first, mesh=mesh, own=own
            )
            courses.append((course, own))
    if courses:
        local = _run([course for course, _ in courses], train, source, seed=seed, mesh=mesh)
        for course, own in courses:
            results[course.folder] = _finish(course, train, source, validation, local, own)
    return {folder: results[folder] for folder in configs}


def _finish(
    course: Course,
    train: TrainConfig,
    source: ActivationSource,
    validation: Validation,
    local: Normalization,
    own: dict[str, Any],
) -> TrainResult:
    """Calibrates and evaluates what a course has become, and writes the result to its folder."""
    config = course.config
    dictionary = calibrate(course.dictionary(), validation, local)
    evaluation = evaluate(dictionary, validation, local)
    log(f"L0 on validation {evaluation.l0:.2f} (k = {config.k:g}), FVE {evaluation.fve_all:.3f}")
    result = TrainResult(
        dictionary=dictionary,
        normalization=source.normalization,
        evaluation=evaluation,
        steps=train.steps,
        tokens=(train.steps - course.skipped) * train.batch,
        l1_weight=course.lines[-1]["l1"] if config.penalised else None,
        history=course.lines,
    )
    _write_result(course.folder, result, own)
    checkpoint.remove(course.folder / "checkpoints", train.keep_every)
    barrier(f"finished {course.folder}")
    return result


def _run(
    courses: list[Course],
    train: TrainConfig,
    source: ActivationSource,
    *,
    seed: int,
    mesh: Mesh,
) -> Normalization:
    """Takes all courses through the batches that they have not had yet.

    Returns:
        The source's normalisation, on the mesh.
    """
    behind = min(courses, key=lambda course: course.done)
    batches, done = source.batches(train.batch, seed=seed), behind.done
    if behind.position is not None:
        batches.set_state(behind.position)
    # Only now: a stream runs the models for it, and a position that does not fit ends here.
    local = jax.device_put(source.normalization, sharding(mesh))
    waited, saved_at = 0.0, time.monotonic()
    with contextlib.ExitStack() as stack:
        preempted = stack.enter_context(preemption.watch())
        feed = stack.enter_context(Feed(batches, mesh))
        advance = stack.enter_context(progress("train", train.steps, "steps", start=done))
        for course in courses:
            stack.enter_context(course.checkpoints)
        while done < train.steps:
            try:
                x = feed.take()
            except StopIteration:
                _save(courses, feed, waited)
                raise _ended(done, train) from None
            done += 1
            active = [course for course in courses if course.done < done]
            for course in active:
                course.take(x, local, waited)
            last = done == train.steps
            if not last:
                feed.prefetch([course.work() for course in active])
            logged = last or done % train.log_every == 0
            if logged:
                waited = feed.waited()
            stop = preempted()
            if last or stop or _is_due(done, train, logged, saved_at):
                _save(active, feed, waited)
                saved_at = time.monotonic()
            if stop and not last:
                raise Preempted(f"preempted after step {done}, which is saved; run again to go on")
            advance(
                1, f"{active[0].note()}  waited for data {waited:.0%}" if active[0].lines else ""
            )
    return local


def _save(courses: list[Course], feed: Feed, waited: float) -> None:
    position = merge_states(feed.position)
    for course in courses:
        course.save(position, waited)


def _is_due(done: int, train: TrainConfig, logged: bool, saved_at: float) -> bool:
    """Tells whether to save after a step, the same on all processes."""
    periods = (train.checkpoint_every, train.keep_every)
    if any(period and done % period == 0 for period in periods):
        return True
    if train.checkpoint_minutes is None or not logged:
        return False
    old = np.array(time.monotonic() - saved_at >= 60 * train.checkpoint_minutes)
    return bool(multihost_utils.broadcast_one_to_all(old) if jax.process_count() > 1 else old)


def _ended(done: int, train: TrainConfig) -> JaxdiffError:
    return JaxdiffError(
        f"the activations ended after {done} of {train.steps} steps of {train.batch} tokens; what "
        "was done is saved",
        where="train.steps",
        fix="run again with more activations to go on, or lower train.steps to start over",
    )


def _write_result(folder: Path, result: TrainResult, own: dict[str, Any]) -> None:
    dictionary = to_host(result.dictionary)
    if jax.process_index() != 0:
        return
    files.save(
        dictionary,
        folder,
        normalization=jax.device_get(result.normalization),
        evaluation=dataclasses.asdict(result.evaluation),
        steps=result.steps,
        tokens=result.tokens,
        l1_weight=result.l1_weight,
        history=result.history,
        settings=own,
    )


def read_result(folder: str | Path, own: dict[str, Any] | None = None) -> TrainResult:
    """Reads what `train` left in a folder.

    Args:
        folder: Folder given to `train`.
        own: When given, the result must come from these settings.

    Raises:
        JaxdiffError: If it is missing, damaged, or made with other settings.
    """
    folder = Path(folder)
    dictionary = files.load(folder)
    found = json.loads((folder / f"{files.NAME}.json").read_text())
    if "evaluation" not in found:
        raise JaxdiffError(
            "this dictionary was not trained by jaxdiff",
            where=folder,
            fix="read it with dictionaries.load and dictionaries.load_normalization",
        )
    if own is not None:
        settings.check(found["settings"], own, folder)
    measured = found["evaluation"]
    return TrainResult(
        dictionary=dictionary,
        normalization=files.load_normalization(folder),
        evaluation=Evaluation(**measured | {"fve": tuple(measured["fve"])}),
        **{name: found[name] for name in ("steps", "tokens", "l1_weight", "history")},
    )
