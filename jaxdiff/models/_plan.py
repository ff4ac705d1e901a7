"""Which blocks a program runs, and which of them in one loop; decided before anything is traced."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxdiff.models._sites import layer_and_part
from jaxdiff.models._tap import Edit, Tap

HIDDEN_BY_FUSED = frozenset({"attn.scores", "attn.pattern"})
"""Parts that a fused attention kernel never makes."""


class Segment(NamedTuple):
    """Blocks low to high - 1, run in one loop; or the block low alone.

    Attributes:
        low: First block.
        high: Block after the last one.
        alone: Whether it is one block outside of any loop.
        ends: Whether the stream after it is read, as `resid_post` of its last block.
        parts: What plain taps read in every one of the blocks, for each world.
        plain_attention: Whether something inside of the attention is asked for.
    """

    low: int
    high: int
    alone: bool
    ends: bool
    parts: tuple[frozenset[str], ...]
    plain_attention: bool


class Asked(NamedTuple):
    """What is asked of one world inside the blocks."""

    edits: tuple[Edit, ...]
    taps: tuple[Tap, ...]
    skipped: frozenset[int]


def plan(
    asked: Sequence[Asked], between: Sequence[str], n: int, *, whole: bool, loops: bool
) -> list[Segment]:
    """Cuts the blocks into segments.

    Blocks next to each other share a loop unless an edit, a block that is skipped or a tap with a
    reducer names one of them. Blocks after the last thing asked for are left out, and that block is
    alone, so that what follows inside it is dropped by the compiler.

    Args:
        asked: What is asked of each world.
        between: Sites that are read of all worlds at once.
        n: Number of blocks.
        whole: Whether the stream after the last block is wanted.
        loops: Whether blocks may share a loop at all.
    """
    edited = [layer_and_part(edit.site) for world in asked for edit in world.edits]
    read = [layer_and_part(tap.site) for world in asked for tap in world.taps]
    read += [layer_and_part(site) for site in between]
    read = [(layer, part) for layer, part in read if layer]
    every = whole or any(layer == "*" for layer, _ in read)
    needed = n if every else max((int(layer) + 1 for layer, _ in read), default=0)

    named = {layer for layer, _ in edited} | {layer_and_part(site)[0] for site in between}
    named |= {layer_and_part(t.site)[0] for world in asked for t in world.taps if not t.plain}
    alone = {int(layer) for layer in named - {"", "*"}}.union(*(w.skipped for w in asked))
    hidden = {layer for layer, part in edited + read if part in HIDDEN_BY_FUSED}

    parts = [
        tuple(frozenset(layer_and_part(t.site)[1] for t in w.taps if _reads(t, i)) for w in asked)
        for i in range(needed)
    ]
    if not every and needed and not any("resid_post" in world for world in parts[-1]):
        # The rest of the last block is not asked for; a loop would keep it.
        alone.add(needed - 1)

    segments: list[Segment] = []
    for i in range(needed):
        single = i in alone or not loops
        new = Segment(i, i + 1, single, False, parts[i], not hidden.isdisjoint({"*", str(i)}))
        last = segments[-1] if segments else None
        joins = last and not (single or last.alone or last.ends) and last[5:] == new[5:]
        if last and joins and last.parts == new.parts:
            segments[-1] = last._replace(high=i + 1)
        elif last and joins and not any(last.parts) and set().union(*new.parts) == _END:
            segments[-1] = last._replace(high=i + 1, ends=True)
        else:
            segments.append(new)
    # A loop of one block is that block.
    return [s._replace(alone=s.alone or s.high - s.low == 1) for s in segments]


_END = {"resid_post"}


def _reads(tap: Tap, layer: int) -> bool:
    return tap.plain and layer_and_part(tap.site)[0] == str(layer)
