"""The training of one dictionary from batch to batch: its state, history and checkpoints."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from jaxdiff import checkpoint
from jaxdiff.activations.normalization import Normalization
from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.errors import JaxdiffError
from jaxdiff.progress import log
from jaxdiff.training import history, settings
from jaxdiff.training.compiled import (
    State,
    check_mesh,
    compile_init,
    compile_step,
    trained,
)
from jaxdiff.training.first_step import first_step
from jaxdiff.training.step import Info


class Course:
    """One dictionary's way through the batches of a run, which several may take side by side.

    Args:
        config: Settings of the dictionary.
        train: Settings of training.
        shape: Sources and their width, (M, D).
        folder: Where history and checkpoints are kept.
        seed: Seed of the initial directions.
        mesh: Devices.
        own: Settings as JSON, which a checkpoint must have been made with.

    Attributes:
        folder: As above.
        config: As above.
        done: Batches taken [steps].
        position: Where the source stood after them, in a run that goes on; None at the start.
        skipped: Batches among them that were not finite and are left out [steps].
        lines: Logged metrics.
        checkpoints: Writes them; to be closed.

    Raises:
        JaxdiffError: If the folder has checkpoints of other settings, or none of them is whole.
    """

    def __init__(
        self,
        config: DictionaryConfig,
        train: TrainConfig,
        shape: tuple[int, int],
        *,
        folder: Path,
        seed: int,
        mesh: Mesh,
        own: dict[str, Any],
    ):
        self.folder, self.config = folder, config
        self.done, self.position = 0, None
        self._train, self._mesh, self._own = train, mesh, own
        self._shape, self._seed = shape, seed
        self._state: State | None = None
        self.skipped = 0
        self.checkpoints = checkpoint.Writer(
            folder / "checkpoints", keep_last=train.keep_last, keep_every=train.keep_every
        )
        if saved := checkpoint.restore(folder / "checkpoints", self._like):
            self.done, self._state, record = saved
            self.position, self.skipped = record["source"], record["skipped"]
            log(f"going on from step {self.done}")
        else:
            self._choose(first_step(config, train, shape, mesh, folder=folder, own=own))
        self._saved = self.done
        self._sent: list[tuple[int, Info]] = []
        self._due = False
        self.lines = history.rewind(folder, self.done)

    def take(self, x: Float[Array, "B M D"], normalization: Normalization, waited: float) -> None:
        """Sends the step on a batch, and reads earlier ones where a line of the history is due.

        Args:
            x: Raw activations, on the mesh.
            normalization: Maps them to what is trained on; on the mesh.
            waited: Part of the time since the last line that the devices waited [fraction].

        Raises:
            JaxdiffError: If an earlier batch or loss was not finite.
        """
        self.done += 1
        if self._state is None:
            if self._train.bad_batch == "skip" and not _is_finite(x):
                self._skip([self.done])
                return
            self._state = self._start(x, normalization, key=jax.random.key(self._seed))
        self._state, info = self._step(self._state, x, normalization)
        if self._due:  # Read only now, while the devices are busy with the step just sent.
            self.read(waited)
        self._sent.append((self.done, info))
        self._due = self.done % self._train.log_every == 0 or self.done == self._train.steps

    def work(self) -> Any:
        """Returns an array that is there when the steps sent so far are done."""
        return self._sent[-1][1].bad if self._sent else None

    def read(self, waited: float) -> None:
        """Reads the steps sent so far, and adds a line to the history if it is due.

        Raises:
            JaxdiffError: If a batch was not finite and such are not skipped, or the loss is not.
        """
        sent, self._sent, due, self._due = self._sent, [], self._due, False
        wrong = jax.device_get([info.bad for _, info in sent])
        bad = [number for (number, _), is_bad in zip(sent, wrong, strict=True) if is_bad]
        self._skip(bad)
        good = [pair for pair in sent if pair[0] not in bad]
        if not good:
            return
        number, info = good[-1]
        left_out = self.skipped - sum(later > number for later in bad)
        line = history.record(number, (number - left_out) * self._train.batch, info)
        line |= {"skipped": self.skipped}
        if due or line["loss"] is None:
            self.lines.append(line)
            history.append(self.folder, line | {history.WAITED: waited})
        if line["loss"] is None:
            raise JaxdiffError(
                f"the loss is not finite at step {number}",
                where=self.folder,
                fix="lower train.lr, or check the activations; earlier checkpoints are kept",
            )

    def save(self, position: dict[str, Any], waited: float) -> None:
        """Starts writing a checkpoint of the steps sent so far, unless there is one.

        Raises:
            JaxdiffError: As `read` does, or if the last checkpoint could not be written.
        """
        self.read(waited)
        if self._state is None or self._saved == self.done:
            return
        record = {"settings": self._own, "shape": self._shape, "step": self._train.step}
        record |= {"source": position, "skipped": self.skipped}
        self.checkpoints.save(self.done, self._state, record)
        self._saved = self.done

    def dictionary(self) -> Dictionary:
        """Returns the dictionary as it is now, its threshold not calibrated.

        Raises:
            JaxdiffError: If no batch was finite.
        """
        if self._state is None:
            raise _bad(1, self.folder)
        return trained(self._state, self.config, self._shape, self._mesh)

    def note(self) -> str:
        """Returns the last line of the history in short."""
        if not self.lines:
            return ""
        last = self.lines[-1]
        fve = "" if last["fve_all"] is None else f"  fve {last['fve_all']:.3f}"
        return f"loss {last['loss']:.4f}  l0 {last['l0']:.1f}{fve}"

    def _like(self, record: dict[str, Any]) -> State:
        """Returns shapes and shardings of a checkpoint's state; the step is the one it was for."""
        settings.check(record["settings"], self._own, self.folder)
        return self._choose(record["step"])

    def _choose(self, step: str) -> State:
        self._train = self._train.model_copy(update={"step": step})
        check_mesh(self.config, self._train, self._mesh)
        self._start, like = compile_init(self.config, self._train, self._shape, self._mesh)
        self._step = compile_step(self.config, self._train, like, self._mesh)
        return like

    def _skip(self, numbers: list[int]) -> None:
        if numbers and self._train.bad_batch == "stop":
            raise _bad(numbers[0], self.folder)
        for number in numbers:
            self.skipped += 1
            log(f"step {number}: the batch is not finite and is skipped ({self.skipped} so far)")


@jax.jit
def _is_finite(x: Float[Array, "B M D"]) -> Bool[Array, ""]:
    return jnp.all(jnp.isfinite(x))


def _bad(step: int, folder: Path) -> JaxdiffError:
    return JaxdiffError(
        f"the batch of step {step} has values that are not finite",
        where=folder,
        fix="check the activations, or set train.bad_batch to skip; earlier checkpoints are kept",
    )
