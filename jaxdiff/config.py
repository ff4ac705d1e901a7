"""Every setting of a run, as frozen records; a YAML file and the command line fill them.

A field's description is its `--help`; it names the unit. Unknown keys are refused with the nearest
known one.
"""

import difflib
import itertools
import re
import types
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import Field

from jaxdiff.errors import JaxdiffError


class Config(pydantic.BaseModel):
    """Base of all settings: frozen, hashable, and strict about names."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )


class PairConfig(Config):
    """Two models to compare: Hugging Face directories, hub names, or `organism:NAME/MODEL`."""

    base: str
    """Base model: directory, hub name, or organism:NAME/MODEL."""
    ft: str
    """Fine-tuned model: directory, hub name, or organism:NAME/MODEL."""
    tokenizer: str | None = None
    """Tokenizer with the chat template; the fine-tuned model's when None."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the models' weights and activations while they run."""
    base_token_map: dict[int, int] = {}
    """Token ids replaced before they are fed to the base model (control tokens it never saw)."""
    others: tuple[str, ...] = ()
    """More models that are read with these two; dictionaries of three or more are not diffed."""


class SourceConfig(Config):
    """One corpus."""

    path: str
    """File (.txt, .jsonl, .parquet), folder of them, organism:NAME/CORPUS, or hf:NAME[:CONFIG]."""
    split: str = "train"
    """Split of a Hugging Face dataset; unused for files."""
    column: str | None = None
    """Column with the text, or with the list of chat messages; found by name when None."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the documents drawn from this source, relative to the other sources."""


class TextConfig(Config):
    """Text to run the models on."""

    sources: tuple[SourceConfig, ...]
    """Corpora, mixed by weight."""
    context: int = Field(default=1024, ge=2)
    """Length of a row [tokens]; longer documents are cut to it."""
    pack: bool = False
    """Put several documents in a row (they do not attend to each other) instead of padding."""
    train_sequences: int = Field(default=100_000, ge=1)
    """Documents to train on [documents]."""
    validation_sequences: int = Field(default=1000, ge=1)
    """Documents to calibrate thresholds on [documents]."""
    test_sequences: int = Field(default=1000, ge=1)
    """Documents that the diff is measured on [documents]."""


class HarvestConfig(Config):
    """Running both models and keeping what they compute."""

    mode: Literal["store", "stream"] = "store"
    """store: write activations once, train from disk. stream: train while the models run."""
    batch: int = Field(default=16, ge=1)
    """Rows of text in one forward pass [rows]."""
    dtype: Literal["float32", "bfloat16", "int8"] = "bfloat16"
    """Dtype of stored activations; int8: with a scale for each row and model, read as float32."""
    chunk: int = Field(default=4096, ge=1)
    """Activations in one chunk file, the unit of reading and of loss by a crash [tokens]."""
    skip: int = Field(default=0, ge=0)
    """Positions masked at the start of every document, after BOS [tokens]."""
    mask_bos: bool = True
    """Mask the BOS position."""
    outlier: float | None = Field(default=10.0, gt=1)
    """Mask norms above this multiple of the median norm [ratio]; None masks none."""
    ring: int = Field(default=262_144, ge=1)
    """Size of the shuffle ring in stream mode [tokens]."""
    normalize: bool = True
    """Subtract each model's mean and scale it to unit mean square before training."""

    @property
    def computed(self) -> Literal["float32", "bfloat16"]:
        """Dtype of activations in memory, on the way to a store and from it."""
        return "float32" if self.dtype == "int8" else self.dtype


Activation = Literal["batch_topk", "topk", "group_max", "relu", "jumprelu", "gated"]


class DictionaryConfig(Config):
    """One dictionary and what it is trained for."""

    latents: int = Field(default=73_728, ge=1)
    """Latents [latents]."""
    activation: Activation = "batch_topk"
    """batch_topk: k per token on average over the batch; topk: k for each; group_max: one of each
    of k groups; relu: L1 penalty; jumprelu: learned thresholds; gated: gates (becomes jumprelu)."""
    k: float = Field(default=100.0, gt=0)
    """Active latents [latents per token]; for relu, the L0 that `match_l0` steers to."""
    code_norm: Literal["crosscoder", "sae", "mixed", "none", "decoupled"] = "crosscoder"
    """Weight of a latent in ranking and penalty, from its decoder norms (crosscoder: their sum)."""
    loss: Literal["l2", "mse"] = "l2"
    """Reconstruction: l2, the unsquared norm per model, or mse, its square."""
    cross: float = Field(default=0.0, ge=-1, le=0)
    """Weight of the product of models' errors (needs mse); at -1 only their difference counts."""
    prefixes: tuple[int, ...] = ()
    """Matryoshka: sizes of nested dictionaries that reconstruct as well as the whole [latents]."""
    l1: float = Field(default=4.1e-2, ge=0)
    """Weight of the sparsity penalty (relu, jumprelu, gated); the start value with match_l0."""
    l1_warmup: int = Field(default=0, ge=0)
    """Steps over which that weight rises linearly from 0 [steps]."""
    match_l0: bool = False
    """Steer the L1 weight during training until L0 is k, then hold it (relu only)."""
    penalty: Literal["tanh", "l0"] = "tanh"
    """Sparsity of jumprelu: tanh, of 4 times value times code norm; l0, the active latents."""
    pre_penalty: float = Field(default=0.0, ge=0)
    """Weight of what jumprelu latents lack to their threshold, which revives dead ones."""
    threshold: float = Field(default=0.1, gt=0)
    """Threshold of jumprelu latents at initialisation [value of a latent]."""
    bandwidth: float = Field(default=2.0, gt=0)
    """Width of the window around a jumprelu threshold that moves it [value of a latent]."""
    k_start: float | None = Field(default=None, gt=0)
    """k at step 0, annealed linearly to k; None starts at k [latents per token]."""
    k_anneal: int = Field(default=0, ge=0)
    """Steps over which k goes from k_start to k [steps]."""
    aux: float = Field(default=1 / 32, ge=0)
    """Weight of the AuxK loss on dead latents; 0 turns it off (not used by relu)."""
    aux_k: int | None = Field(default=None, ge=1)
    """Dead latents used by AuxK [latents per token]; half the width of one model when None."""
    dead_after: int = Field(default=10_000_000, ge=1)
    """A latent is dead when it has not fired for this long [tokens]."""
    decoder_norm: float = Field(default=1.0, gt=0)
    """Norm of each decoder row at initialisation, per model."""
    same_init: bool = True
    """Start all models from the same decoder directions."""
    tied: bool = False
    """Use the transposed decoder as encoder."""
    shared: int = Field(default=0, ge=0)
    """First latents that have one decoder row for all models [latents]."""
    shared_penalty: float = Field(default=1.0, ge=0)
    """Sparsity penalty of these, relative to other latents (relu, jumprelu) [ratio]."""
    dedicated: tuple[int, ...] = ()
    """Last latents that read and write one model alone, a number for each model [latents]."""
    reads: tuple[int, ...] | None = None
    """Sources that the encoder reads, by number; all when None."""
    writes: tuple[int, ...] | None = None
    """Sources that are reconstructed, by number; all when None."""
    difference: bool = False
    """Train on the difference of two models, fine-tuned minus base, as one source (diff-SAE)."""
    skip: bool = False
    """Add an affine map from what is read to what is written."""
    median_bias: bool = True
    """Start the decoder bias at the geometric median of the first batch; zeros otherwise."""
    seed: int | None = Field(default=None, ge=0)
    """Seed of the initial directions; the run's own when None."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "DictionaryConfig":
        if (self.k_start is None) != (self.k_anneal == 0):
            raise ValueError("k_start and k_anneal belong together: give both or neither")
        if self.match_l0 and (self.activation != "relu" or self.l1 == 0 or self.l1_warmup):
            raise ValueError(
                "match_l0 needs activation relu, an l1 above 0 to start from, and no l1_warmup"
            )
        if self.code_norm == "decoupled" and self.activation in ("jumprelu", "gated"):
            raise ValueError(f"{self.activation} has one threshold a latent: code_norm decoupled")
        if self.cross and self.loss != "mse":
            raise ValueError("cross needs loss mse")
        if any(a >= b for a, b in itertools.pairwise((0, *self.prefixes, self.latents))):
            raise ValueError(f"prefixes must rise, from 1 to below {self.latents} latents")
        if self.shared + sum(self.dedicated) > self.latents or min((0, *self.dedicated)) < 0:
            raise ValueError(f"shared and dedicated do not fit into {self.latents} latents")
        if self.shared_penalty != 1 and self.activation not in ("relu", "jumprelu"):
            raise ValueError("shared_penalty needs activation relu or jumprelu")
        if self.activation == "topk" and (self.k % 1 or (self.k_start or 0) % 1):
            raise ValueError("topk keeps as many latents of each row: k and k_start must be whole")
        if self.activation == "group_max" and (self.k % 1 or self.latents % self.k):
            raise ValueError(f"group_max needs a whole k that divides {self.latents} latents")
        if self.activation == "group_max" and self.k_start is not None:
            raise ValueError("group_max has k groups from the start: k_start is for other rules")
        for name in ("reads", "writes"):
            chosen = getattr(self, name)
            if chosen is not None and (
                not chosen or min(chosen) < 0 or len({*chosen}) < len(chosen)
            ):
                raise ValueError(f"{name} must name sources, each once, counted from 0")
        if self.reads != self.writes and (self.tied or self.dedicated):
            raise ValueError("tied and dedicated need an encoder and a decoder of the same sources")
        return self

    @property
    def penalised(self) -> bool:
        """Whether a penalty decides how many latents are active."""
        return self.activation in ("relu", "jumprelu", "gated")


class TrainConfig(Config):
    """Training of a dictionary."""

    steps: int = Field(default=50_000, ge=1)
    """Optimizer steps [steps]."""
    batch: int = Field(default=2048, ge=1)
    """Tokens in a step over all devices [tokens]."""
    lr: float | None = Field(default=1e-4, gt=0)
    """Peak learning rate of Adam; None takes 2e-4 / sqrt(latents / 2^14)."""
    warmup: int = Field(default=1000, ge=0)
    """Linear warm-up [steps]."""
    decay_from: float | None = Field(default=None, ge=0, lt=1)
    """Part of the steps after which the rate falls linearly to 0 [fraction]; None never decays."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of Adam's first moment; with 0, work and updates can follow the active latents."""
    step: Literal["auto", "dense", "sparse"] = "auto"
    """auto: sparse where beta1 0 and a plain batch_topk, topk, relu or jumprelu allow it and the
    device is faster so."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of Adam's second moments in the sparse step; to bfloat16 they are rounded up or down by
    bits that step and place decide, so that small changes are kept on average."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest global norm of the gradient; None does not clip."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the matrix products; parameters and sums stay float32."""
    bad_batch: Literal["stop", "skip"] = "stop"
    """A batch with values that are not finite: stop, or skip the step, counted in the history."""
    checkpoint_every: int = Field(default=1000, ge=1)
    """Steps between checkpoints [steps]."""
    checkpoint_minutes: float | None = Field(default=None, gt=0)
    """Save also when the last checkpoint is this old at a logged step [minutes]; None: never."""
    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints that stay until training is complete [checkpoints]."""
    keep_every: int | None = Field(default=None, ge=1)
    """Checkpoints that stay for good: those at multiples of this [steps]; None keeps none."""
    log_every: int = Field(default=100, ge=1)
    """Steps between logged metrics [steps]."""
    together: int | None = Field(default=None, ge=1)
    """Dictionaries trained in one pass over the activations, all in memory; None: all of a pair."""

    @pydantic.model_validator(mode="after")
    def _possible(self) -> "TrainConfig":
        if self.moment_dtype == "bfloat16" and self.step != "sparse":
            raise ValueError(
                f"moment_dtype bfloat16 needs step sparse (and beta1 0), got {self.step}"
            )
        return self


BOOKKEEPING = frozenset(
    ("checkpoint_every", "checkpoint_minutes", "keep_last", "keep_every", "log_every", "together")
)
"""Fields of `TrainConfig` that do not decide what a dictionary becomes."""


class MeshConfig(Config):
    """Devices of a run."""

    data: int = Field(default=1, ge=1)
    """Devices that split the batch."""
    latent: int | None = Field(default=None, ge=1)
    """Devices that split the latents; all remaining ones when None."""


class DiffConfig(Config):
    """Comparing two models through trained dictionaries."""

    batch: int = Field(default=2048, ge=1)
    """Activations in one step of the measuring pass [tokens]."""
    bootstrap: int = Field(default=200, ge=2)
    """Bootstrap resamples of whole sequences [resamples]."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Level of the intervals [fraction]."""
    nu_reconstruction: float = Field(default=0.5, gt=0)
    """nu^r (and ratio of decoder norms) below which a latent may be exclusive; decoupled above."""
    nu_error: float = Field(default=0.2, gt=0)
    """nu^eps below which a latent may be exclusive; shrunk above (paper: 0.2)."""
    min_sequences: float = Field(default=8.0, ge=0)
    """A latent carried by fewer than this stays undecided [effective sequences]."""
    examples: int = Field(default=8, ge=0)
    """Strongest examples kept for each latent [examples]."""
    window: int = Field(default=12, ge=0)
    """Tokens shown on each side of an example's strongest token [tokens]."""
    auroc: float = Field(default=0.9, gt=0.5, le=1)
    """AUROC from which a planted behaviour counts as found."""


class RunConfig(Config):
    """A whole run: harvest, train, diff, report."""

    out: Path
    """Folder of the run; stages that are complete there are not done again."""
    models: PairConfig
    """The pair to compare."""
    null_pair: PairConfig | None = None
    """A pair with nothing to find, put through the same pipeline; None leaves it out."""
    site: str = "blocks.13.resid_post"
    """Where activations are read; several sites, separated by commas, are sources side by side."""
    text: TextConfig
    """Text to run the models on."""
    harvest: HarvestConfig = HarvestConfig()
    """Running both models and keeping what they compute."""
    dictionaries: dict[str, DictionaryConfig] = {"batch_topk": DictionaryConfig()}
    """Dictionaries to train, by name."""
    train: TrainConfig = TrainConfig()
    """Training of each dictionary."""
    diff: DiffConfig = DiffConfig()
    """Comparing the models."""
    mesh: MeshConfig = MeshConfig()
    """Devices."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random in the run."""

    def compares(self, name: str) -> bool:
        """Tells whether a dictionary is of two models at one site, so that a diff can be made."""
        own, sources = self.dictionaries[name], 2 + len(self.models.others)
        parts = own.difference or own.reads is not None or own.writes is not None
        return sources * len(self.site.split(",")) == 2 and not parts

    @pydantic.model_validator(mode="after")
    def _alike(self) -> "RunConfig":
        if self.null_pair and len(self.null_pair.others) != len(self.models.others):
            raise ValueError("null_pair must have as many models as models")
        return self

    @pydantic.field_validator("out")
    @classmethod
    def _local(cls, out: Path) -> Path:
        if re.match(r"[a-z0-9]+:/", str(out)):
            raise ValueError("a run's folder must be local; buckets are not supported")
        return out

    @pydantic.field_validator("dictionaries")
    @classmethod
    def _names(cls, dictionaries: dict[str, DictionaryConfig]) -> dict[str, DictionaryConfig]:
        if not dictionaries:
            raise ValueError("there must be at least one dictionary")
        for name, own in dictionaries.items():
            if not re.fullmatch(r"[\w-]+", name):
                raise ValueError(f"{name!r} cannot be a folder's name")
            if (most := max(own.k, own.k_start or 0)) > own.latents:
                raise ValueError(f"{name}: k = {most:g} is above its {own.latents} latents")
        return dictionaries


def presets() -> dict[str, Path]:
    """Returns the YAML files that come with jaxdiff, by preset name."""
    folder = Path(str(resources.files("jaxdiff.configs")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(name_or_path: str | Path) -> RunConfig:
    """Reads a run's settings from a YAML file or a preset.

    Args:
        name_or_path: File, or name of a preset.

    Returns:
        The settings.

    Raises:
        JaxdiffError: If there is no such file or preset, it is not YAML, or it holds unknown,
            missing or unusable fields; all of them are listed.
    """
    path = Path(name_or_path)
    if not path.is_file():
        known = presets()
        if str(name_or_path) not in known:
            near = difflib.get_close_matches(str(name_or_path), known, 1)
            raise JaxdiffError(
                f"there is no config file and no preset called {name_or_path}",
                fix=(f"did you mean {near[0]}? " if near else "")
                + f"presets are {', '.join(known)}",
            )
        path = known[str(name_or_path)]
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JaxdiffError(f"the config is not valid YAML: {error}", where=path) from None
    if not isinstance(content, dict):
        raise JaxdiffError("the config must be a mapping of fields to values", where=path)
    return parse(content, where=path)


def parse(content: dict[str, Any], *, where: object = "config") -> RunConfig:
    """Checks plain values and returns them as settings.

    Raises:
        JaxdiffError: As `load` does.
    """
    try:
        return RunConfig.model_validate(content)
    except pydantic.ValidationError as error:
        problems = [_explain(e) for e in error.errors()]
        raise JaxdiffError(
            "the config cannot be used: " + "; ".join(problems),
            where=where,
            fix="`jaxdiff run CONFIG --help` lists every field with its unit",
        ) from None


def _explain(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, 1)
        return f"unknown field {name}" + (f" (did you mean {near[0]}?)" if near else "")
    if error["type"] == "missing":
        return f"missing field {name}"
    return f"{name}: {error['msg']}, got {error['input']!r}"


def _fields(location: tuple[Any, ...]) -> list[str]:
    """Returns the names that exist at a place inside RunConfig."""
    kind: Any = RunConfig
    for part in location:
        if isinstance(kind, type):
            kind = kind.model_fields[part].annotation
            if isinstance(kind, types.UnionType):  # `Config | None`
                kind = kind.__args__[0]
        else:  # A key or an index of a container of settings.
            kind = next(c for c in kind.__args__ if isinstance(c, type) and issubclass(c, Config))
    return list(kind.model_fields)
