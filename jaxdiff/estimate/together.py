"""What is on the devices at once: all dictionaries of a pass, and the models that a stream runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxdiff.config import RunConfig
from jaxdiff.estimate.costs import FEED, at_start
from jaxdiff.estimate.stage import HARVEST, Stage, training
from jaxdiff.pipeline.plan import passes

# Batches of a harvest that are on their way while training goes on.
_FLIGHT = 2


@dataclass(frozen=True)
class Pass:
    """Programs that take turns on the same devices.

    Attributes:
        stages: Their names.
        memory: Bytes in use on one device, by cause: what each keeps is added up, temporaries are
            those of the largest.
        start: Bytes in use while the last state is made.
        seconds: Roofline time of a batch through all of them [s].
        tokens: Tokens of a batch [tokens].
        fits: Whether they fit together.
        advice: What to change where only each alone fits.
    """

    stages: tuple[str, ...]
    memory: Mapping[str, float]
    start: float
    seconds: float
    tokens: int
    fits: bool
    advice: tuple[str, ...] = ()

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all devices in a second, at the roofline; 0 if a program is refused."""
        return self.tokens / self.seconds if self.seconds else 0.0


def together(config: RunConfig, stages: Mapping[str, Stage], room: float) -> list[Pass]:
    """Returns the passes of a run in which several programs take turns.

    Args:
        config: The run.
        stages: All its stages.
        room: Memory of a device [bytes].
    """
    streamed = HARVEST in stages and config.harvest.mode == "stream"
    found = []
    for names in passes(config):
        trained = [training(name) for name in names]
        chosen = [HARVEST, *trained] if streamed else trained
        if len(chosen) > 1:
            found.append(_pass(config, stages, chosen, room))
    return found


def _pass(
    config: RunConfig, stages: Mapping[str, Stage], names: Sequence[str], room: float
) -> Pass:
    chosen = {name: stages[name] for name in names}
    memory = _memory(chosen)
    fits = _size(chosen) <= room and all(stage.fits for stage in chosen.values())
    seconds = 0.0
    for name, stage in chosen.items():
        part = config.train.batch / stage.costs.tokens if name == HARVEST else 1.0
        seconds += part * stage.times.seconds
    advice = () if fits else _advice(chosen, room)
    start = _start(chosen, memory)
    return Pass(tuple(names), memory, start, seconds, config.train.batch, fits, advice)


# What is there once however many dictionaries train: the batch and the next one.
_ONCE = ("inputs", FEED, "temporaries")


def _memory(chosen: Mapping[str, Stage]) -> dict[str, float]:
    memory: dict[str, float] = {}
    for name, stage in chosen.items():
        for cause, size in stage.costs.memory.items():
            if name == HARVEST and cause == "outputs":
                size *= _FLIGHT
            if name == HARVEST and cause == "parameters":
                cause = "models"
            before = memory.get(cause, 0.0)
            memory[cause] = max(before, size) if cause in _ONCE else before + size
    return memory


def _advice(chosen: Mapping[str, Stage], room: float) -> tuple[str, ...]:
    """Returns what makes programs fit together."""
    lines = [f"they need {_size(chosen) / room:.2f} times a device's memory"]
    if not all(stage.fits for stage in chosen.values()):
        return (*lines, "first make each of them fit alone")
    trained = [name for name in chosen if name != HARVEST]
    for size in range(len(trained) - 1, 0, -1):
        groups = [trained[at : at + size] for at in range(0, len(trained), size)]
        if all(_size(_some(chosen, HARVEST, *group)) <= room for group in groups):
            lines.append(f"train.together = {size} fits: so many dictionaries in a pass, at most")
            return tuple(lines)
    if HARVEST in chosen:
        lines.append("harvest.mode = store keeps the models out of the memory of training")
    return tuple(lines)


def _some(chosen: Mapping[str, Stage], *names: str) -> dict[str, Stage]:
    return {name: chosen[name] for name in names if name in chosen}


def _size(chosen: Mapping[str, Stage]) -> float:
    """Returns the most bytes that are in use at once: in a step, or while a state is made."""
    memory = _memory(chosen)
    return max(sum(memory.values()), _start(chosen, memory))


def _start(chosen: Mapping[str, Stage], memory: Mapping[str, float]) -> float:
    trained = (stage for stage in chosen.values() if stage.step)
    return at_start(memory, max(stage.costs.memory["parameters"] for stage in trained))
