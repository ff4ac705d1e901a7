"""The training loop: from a source of activations to a calibrated dictionary in a folder."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdiff import checkpoint
from jaxdiff.activations._devices import merge_states
from jaxdiff.activations.normalization import Normalization
from jaxdiff.activations.source import ActivationSource
from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries import files
from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.errors import JaxdiffError
from jaxdiff.manifest import write_atomically
from jaxdiff.mesh import barrier, make_mesh, sharding, to_host
from jaxdiff.progress import log, progress
from jaxdiff.training import history
from jaxdiff.training.break_even import faster_step
from jaxdiff.training.calibration import Evaluation, Validation, calibrate, evaluate
from jaxdiff.training.compiled import (
    State,
    check_mesh,
    compile_init,
    compile_step,
    is_sparse,
    put,
    trained,
)


@dataclass(frozen=True)
class TrainResult:
    """A trained dictionary and how it came about.

    Attributes:
        dictionary: In the normalised space, with its threshold.
        normalization: Maps raw activations to that space.
        evaluation: On validation, with the inference rule.
        steps: Optimizer steps [steps].
        tokens: Activations trained on [tokens].
        l1_weight: L1 weight of the last step; None unless the rule is relu.
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
        seed: Seed of the initial directions and of the source's order.
        mesh: Devices, with axes `data` and `latent`; one device when None.

    Returns:
        The result, which is also in `folder`.

    Raises:
        JaxdiffError: If the mesh does not fit, the source ends early, the loss is not finite, or
            the folder belongs to a run with other settings.
    """
    mesh = make_mesh(1, 1) if mesh is None else mesh
    check_mesh(config, train, mesh)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"dictionary": _plain(config), "train": _plain(train), "seed": seed}
    if (folder / f"{files.NAME}.json").exists():
        result = read_result(folder, settings)
        checkpoint.remove(folder / "checkpoints")
        return result
    state, lines = _run(config, train, source, folder=folder, seed=seed, mesh=mesh, own=settings)
    local = jax.device_put(source.normalization, sharding(mesh))
    dictionary = trained(state, config, source.shape, mesh)
    dictionary = calibrate(dictionary, validation, local)
    evaluation = evaluate(dictionary, validation, local)
    log(f"L0 on validation {evaluation.l0:.2f} (k = {config.k:g}), FVE {evaluation.fve_all:.3f}")
    result = TrainResult(
        dictionary=dictionary,
        normalization=source.normalization,
        evaluation=evaluation,
        steps=train.steps,
        tokens=train.steps * train.batch,
        l1_weight=lines[-1]["l1"] if config.activation == "relu" else None,
        history=lines,
    )
    _write_result(folder, result, settings)
    checkpoint.remove(folder / "checkpoints")
    barrier(f"finished {folder}")
    return result


def _run(
    config: DictionaryConfig,
    train: TrainConfig,
    source: ActivationSource,
    *,
    folder: Path,
    seed: int,
    mesh: Mesh,
    own: dict[str, Any],
) -> tuple[State, list[dict[str, Any]]]:
    """Does the steps that are not done yet; returns the last state and the history."""
    train = train.model_copy(
        update={"step": _chosen_step(config, train, source.shape, mesh, folder)}
    )
    start, like = compile_init(config, train, source.shape, mesh)
    step = compile_step(config, train, like, mesh)
    normalization = jax.device_put(source.normalization, sharding(mesh))
    batches = source.batches(train.batch, seed=seed)
    state, done = None, 0
    if saved := checkpoint.restore(folder / "checkpoints", like):
        done, state, kept = saved
        _check_settings(kept["settings"], own, folder)
        batches.set_state(kept["source"])
        log(f"going on from step {done}")
    lines = history.rewind(folder, done)

    def write(number: int, info) -> None:
        lines.append(history.record(number, number * train.batch, info))
        history.append(folder, lines[-1])
        if lines[-1]["loss"] is None:
            raise _diverged(number, folder)

    waiting = None
    with progress("train", train.steps, "steps", start=done) as advance:
        while done < train.steps:
            x = put(_next(batches, done, train), mesh)
            if state is None:
                state = start(x, normalization, key=jax.random.key(seed))
            state, info = step(state, x, normalization)
            done += 1
            if waiting:  # Read only now, while the devices are busy with the step just sent.
                write(*waiting)
                waiting = None
            due = done % train.checkpoint_every == 0 or done == train.steps
            if done % train.log_every == 0 or done == train.steps:
                waiting = (done, info)
            if due:
                if waiting:
                    write(*waiting)
                    waiting = None
                elif not math.isfinite(info.loss):
                    raise _diverged(done, folder)
                kept = {"settings": own, "source": merge_states(batches.get_state())}
                checkpoint.save(folder / "checkpoints", done, state, kept)
            advance(1, _note(lines))
    assert state is not None
    return state, lines


def _chosen_step(config, train: TrainConfig, shape, mesh: Mesh, folder: Path) -> str:
    """Returns the kind of step, which a run that is taken up again keeps."""
    path = folder / "checkpoints" / "step.json"
    if path.exists():
        return json.loads(path.read_text())["step"]
    step = faster_step(config, train, shape, mesh)
    measured = train.step == "auto" and is_sparse(config, train)
    if measured and jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps({"step": step}).encode())
    return step


def _next(batches: Any, done: int, train: TrainConfig) -> Any:
    try:
        return next(batches).x
    except StopIteration:
        raise JaxdiffError(
            f"the activations ended after {done} of {train.steps} steps of {train.batch} tokens",
            where="train.steps",
            fix="lower train.steps, or harvest more text",
        ) from None


def _note(lines: list[dict[str, Any]]) -> str:
    if not lines:
        return ""
    last = lines[-1]
    fve = "" if last["fve_all"] is None else f"  fve {last['fve_all']:.3f}"
    return f"loss {last['loss']:.4f}  l0 {last['l0']:.1f}{fve}"


def _diverged(step: int, folder: Path) -> JaxdiffError:
    return JaxdiffError(
        f"the loss is not finite at step {step}",
        where=folder,
        fix="lower train.lr, or check the activations; earlier checkpoints are kept",
    )


def _plain(config: DictionaryConfig | TrainConfig) -> dict[str, Any]:
    return json.loads(config.model_dump_json())


def _check_settings(found: Any, own: dict[str, Any], folder: Path) -> None:
    if found != own:
        names = [
            f"{part}.{name}"
            for part in ("dictionary", "train")
            for name in own[part]
            if found[part].get(name) != own[part][name]
        ]
        raise JaxdiffError(
            f"the folder belongs to a run with another {', '.join(names) or 'seed'}",
            where=folder,
            fix="choose another folder, or delete this one",
        )


def _write_result(folder: Path, result: TrainResult, settings: dict[str, Any]) -> None:
    dictionary = to_host(result.dictionary)
    if jax.process_index() != 0:
        return
    files.save(
        dictionary,
        folder,
        normalization={
            "mean": jax.device_get(result.normalization.mean).tolist(),
            "scale": jax.device_get(result.normalization.scale).tolist(),
        },
        evaluation=dataclasses.asdict(result.evaluation),
        steps=result.steps,
        tokens=result.tokens,
        l1_weight=result.l1_weight,
        history=result.history,
        settings=settings,
    )


def read_result(folder: str | Path, settings: dict[str, Any] | None = None) -> TrainResult:
    """Reads what `train` left in a folder.

    Args:
        folder: Folder given to `train`.
        settings: When given, the result must come from these.

    Raises:
        JaxdiffError: If it is missing, damaged, or made with other settings.
    """
    folder = Path(folder)
    dictionary = files.load(folder)
    found = json.loads((folder / f"{files.NAME}.json").read_text())
    if settings is not None:
        _check_settings(found["settings"], settings, folder)
    shift = {name: np.asarray(v, np.float32) for name, v in found["normalization"].items()}
    measured = found["evaluation"]
    return TrainResult(
        dictionary=dictionary,
        normalization=Normalization(**shift),
        evaluation=Evaluation(**measured | {"fve": tuple(measured["fve"])}),
        **{name: found[name] for name in ("steps", "tokens", "l1_weight", "history")},
    )
