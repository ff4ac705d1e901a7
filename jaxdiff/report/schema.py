"""What results.json must hold; the one reader of its shape outside of the page itself."""

from collections.abc import Mapping
from typing import Any

import pydantic

from jaxdiff.errors import JaxdiffError

_SHOWN_PROBLEMS = 5

# JSON has no NaN: a number that is not defined is null.
Number = float | None
Interval = tuple[Number, Number, Number] | None


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")


class _DiffSettings(_Record):
    nu_reconstruction: float
    nu_error: float
    confidence: float
    auroc: float


class _Settings(_Record):
    diff: _DiffSettings


class _Model(_Record):
    path: str
    fingerprint: str
    parameters: int | None
    architecture: str
    changes: tuple[str, ...] = ()


class _Stage(_Record):
    fingerprint: str
    seconds: Number


class _Provenance(_Record):
    seed: int
    versions: dict[str, str]
    platform: str
    devices: str
    models: dict[str, _Model]
    stages: dict[str, _Stage]
    seconds: Number


class _Pair(_Record):
    base: str
    ft: str


class _Behaviour(_Record):
    id: int
    name: str
    kind: str
    description: str


class _Split(_Record):
    sequences: int
    tokens: int
    masked: int


class _Fve(_Record):
    base: Number
    ft: Number
    all: Number


class _Point(_Record):
    step: int
    loss: Number
    l0: Number
    fve: Number
    dead: Number


class _Training(_Record):
    steps: int
    tokens: int
    history: list[_Point]


class _Counts(_Record):
    ft_only: int
    base_only: int
    shared: int
    other: int
    dead: int


class _Verdicts(_Record):
    exclusive: int
    shrunk: int
    decoupled: int
    shared: int
    undecided: int


class _Histogram(_Record):
    edges: list[float]
    counts: list[int]


class _RoleFiring(_Record):
    tokens: int
    l0: Number


class _BestAny(_Record):
    latent: int | None
    auroc: Number
    verdict: str | None
    relative_norm: Number


class _Truth(_Record):
    behaviour: str
    kind: str
    latent: int | None
    auroc: Number
    relative_norm: Number
    verdict: str | None
    found: bool
    tokens: int
    best_any: _BestAny | None


class _Row(_Record):
    latent: int
    kind: str = pydantic.Field(alias="class")
    verdict: str | None
    side: str | None
    relative_norm: Number
    relative_norm_raw: Number
    cosine: Number
    nu_reconstruction: Interval
    nu_error: Interval
    frequency: Number
    max_activation: Number
    mean_activation: Number
    roles: dict[str, Number]
    behaviour: str | None
    behaviour_auroc: Number


class _Example(_Record):
    sequence: int
    value: Number
    at: int
    tokens: list[str]
    values: list[Number]
    roles: list[int]


class _Dictionary(_Record):
    activation: str
    latents: int
    k: Number
    l0: Number
    l0_validation: Number
    threshold: Any
    l1_weight: Number
    fve: _Fve
    dead_fraction: Number
    alive: int
    tokens: int
    sequences: int
    training: _Training
    counts: _Counts
    latent_scaling: _Verdicts
    latent_scaling_ft_only: _Verdicts
    norm_histogram: _Histogram
    roles: dict[str, _RoleFiring]
    truth: list[_Truth]
    table: list[_Row]
    examples: dict[str, list[_Example]]


class _Results(_Record):
    jaxdiff: str
    created: str
    config: _Settings
    provenance: _Provenance
    pair: _Pair
    null_pair: _Pair | None
    site: str
    roles: list[str]
    behaviours: list[_Behaviour]
    planting: str | None = None
    data: dict[str, _Split]
    dictionaries: dict[str, _Dictionary]
    null: dict[str, _Dictionary] | None


def check(results: Mapping[str, Any]) -> None:
    """Checks that results have every part that the page shows.

    Args:
        results: Contents of results.json.

    Raises:
        JaxdiffError: If a key is missing or holds something of another kind; it names the keys.
    """
    try:
        _Results.model_validate(results)
    except pydantic.ValidationError as error:
        problems = [_describe(problem) for problem in error.errors(include_url=False)]
    else:
        return
    shown = "; ".join(problems[:_SHOWN_PROBLEMS])
    more = len(problems) - _SHOWN_PROBLEMS
    raise JaxdiffError(
        "the results are not complete: " + shown + (f"; and {more} more" if more > 0 else ""),
        where="results.json",
        fix="run the diff stage again with this version of jaxdiff",
    )


def _describe(problem: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "the whole"
    if problem["type"] == "missing":
        return f"{key} is missing"
    return f"{key}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
