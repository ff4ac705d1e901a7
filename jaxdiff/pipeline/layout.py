"""Where a run keeps what: `OUT/{main,null}/{harvest,train,diff}/...`, results.json and report/."""

from pathlib import Path

from jaxdiff.config import PairConfig, RunConfig

SPLITS = ("train", "validation", "test")


def pairs(config: RunConfig) -> dict[str, PairConfig]:
    """Returns the pairs of a run: `main`, and `null` if there is one."""
    null = {} if config.null_pair is None else {"null": config.null_pair}
    return {"main": config.models} | null


def harvest_folder(config: RunConfig, pair: str, split: str) -> Path:
    """Returns the store of a split of the text."""
    return config.out / pair / "harvest" / split


def train_folder(config: RunConfig, pair: str, dictionary: str) -> Path:
    """Returns the folder of a trained dictionary."""
    return config.out / pair / "train" / dictionary


def diff_folder(config: RunConfig, pair: str, dictionary: str) -> Path:
    """Returns the folder of what a dictionary says about a pair."""
    return config.out / pair / "diff" / dictionary


def results_file(config: RunConfig) -> Path:
    """Returns the file with all numbers of a run."""
    return config.out / "results.json"


def report_folder(config: RunConfig) -> Path:
    """Returns the folder of the HTML page."""
    return config.out / "report"
