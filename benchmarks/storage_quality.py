"""What the dtype of stored activations costs: dictionaries trained from each, on the same rows."""

import functools
import pathlib
import tempfile
from typing import Any

from jaxdiff import activations, config, models, organisms, text, training
from jaxdiff.training import evaluate

SITE, CHAT = "blocks.2.resid_post", "chat-tiny/chat"
DTYPES = ("float32", "bfloat16", "int8")
CROSSCODER = config.DictionaryConfig(latents=512, k=12, dead_after=50_000)
TRAIN = config.TrainConfig(steps=1500, batch=512, lr=1e-3, warmup=100, log_every=500)


def quality() -> list[dict[str, Any]]:
    """Trains a crosscoder of the quickstart's pair from a store of each dtype.

    All are calibrated on rows of their own dtype and evaluated on the same float32 rows, which
    none was trained on.

    Returns:
        One record for each dtype: bytes of a row, and fractions of variance explained.
    """
    with tempfile.TemporaryDirectory() as name:
        out = pathlib.Path(name)
        stores = {dtype: _harvest(out, dtype) for dtype in DTYPES}
        exact = functools.partial(activations.scan, stores["float32"]["test"], 2048)
        return [_train(out / "trained" / dtype, dtype, stores[dtype], exact) for dtype in DTYPES]


def _train(folder: pathlib.Path, dtype: str, stores: dict, exact) -> dict[str, Any]:
    held_out = functools.partial(activations.scan, stores["validation"], 2048)
    source = activations.StoreSource(stores["train"])
    result = training.train(CROSSCODER, TRAIN, source, held_out, folder=folder, seed=0)
    found = evaluate(result.dictionary, exact, result.normalization)
    return {
        "dtype": dtype,
        "row_bytes": stores["train"].row_bytes,
        "fve": found.fve_all,
        "fve_base": found.fve[0],
        "fve_ft": found.fve[1],
        "l0": found.l0,
    }


def _harvest(out: pathlib.Path, dtype: str) -> dict[str, activations.Store]:
    both = tuple(models.load(organisms.path(name)) for name in ("chat-tiny/base", CHAT))
    tokenizer = text.load_tokenizer(organisms.path(CHAT))
    if not (out / "plain.jsonl").exists():
        organisms.write_corpora("chat-tiny", out)
    sources = tuple(config.SourceConfig(path=f"{out}/{name}.jsonl") for name in ("plain", "chat"))
    settings, stores = config.HarvestConfig(dtype=dtype), {}
    spans = {"validation": (0, 300), "test": (300, 800), "train": (800, 3800)}
    for name, (start, stop) in spans.items():
        rows = text.batches(
            sources, tokenizer, context=128, batch=64, pack=True, seed=0, start=start, stop=stop
        )
        acts = activations.harvest(activations.ModelPair(both), rows, SITE, config=settings)
        activations.write_store(out / dtype / name, acts, config=settings)
        stores[name] = activations.Store.open(out / dtype / name)
    return stores
