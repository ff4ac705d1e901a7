"""What a run reads of its models, and what a dictionary then trains on."""

from dataclasses import dataclass

from jaxdiff import models
from jaxdiff.activations.pair import ModelPair, check_pair
from jaxdiff.config import DictionaryConfig, RunConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import LM, ModelConfig
from jaxdiff.models._lm import abstract
from jaxdiff.pipeline import inputs


@dataclass(frozen=True)
class Sources:
    """Activations of a run.

    Attributes:
        specs: The models; none where only the width is known.
        site: Canonical names of the sites, as a harvest has them.
        shape: (S, D): a source for each model at each site, and their width.
        dtype: Their dtype in memory.
    """

    specs: tuple[ModelConfig, ...]
    site: str
    shape: tuple[int, int]
    dtype: str

    def of(self, dictionary: DictionaryConfig) -> tuple[tuple[int, int], str]:
        """Returns shape and dtype of what a dictionary trains on.

        Raises:
            JaxdiffError: If it is of a difference, and there are more sources than two.
        """
        if not dictionary.difference:
            return self.shape, self.dtype
        if self.shape[0] != 2:
            raise JaxdiffError(
                f"a difference is of two models at one site, this run has {self.shape[0]} sources",
                where="dictionary.difference",
            )
        # Differences of bfloat16 numbers are float32; see `activations.difference`.
        return (1, self.shape[1]), "float32"


def sources(config: RunConfig, width: int | None = None) -> Sources:
    """Returns the sources of a run, from the models' config.json alone.

    Args:
        config: The run.
        width: D, when the models' config cannot be read.

    Raises:
        JaxdiffError: If no config can be read and no width is given, or the models cannot be
            compared at the sites.
    """
    names = (config.models.base, config.models.ft, *config.models.others)
    dtype = config.harvest.computed
    if width is not None:
        return Sources((), config.site, (len(names) * len(config.site.split(",")), width), dtype)
    specs = tuple(_spec(name) for name in names)
    stand_ins = tuple(LM({}, abstract(spec)[0], spec) for spec in specs)
    site, shape = check_pair(ModelPair(stand_ins, config.models.base_token_map), config.site)
    return Sources(specs, site, shape, dtype)


def _spec(name: str) -> ModelConfig:
    try:
        return models.load_spec(inputs.resolve(name))
    except JaxdiffError as error:
        raise JaxdiffError(
            f"the models' config cannot be read: {error.what}",
            where=error.where,
            fix="give --width, the width of their activations, to estimate training alone; or "
            + error.fix,
        ) from None
