"""The README's chapter on reaching into a model runs as it is printed."""

import re
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def examples():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    chapter = readme.partition("## Reach into a model")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", chapter, re.S)


@pytest.fixture(scope="module")
def session(examples):
    # Printed code is written as a user would: jnp's promotion rules are JAX's own there.
    import jax

    before = jax.config.jax_numpy_dtype_promotion, jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    names: dict = {}
    for example in examples:
        exec(example, names)
    yield names
    jax.config.update("jax_numpy_dtype_promotion", before[0])
    jax.config.update("jax_numpy_rank_promotion", before[1])


def test_each_example_has_fewer_than_ten_lines(examples):
    assert len(examples) == 9
    assert all(len(example.splitlines()) < 10 for example in examples)


def test_they_find_what_they_say(session):
    assert session["acts"]["blocks.*.resid_post"].shape == (4, 1, 24, 96)
    assert session["acts"]["blocks.1.mlp.post"].shape == (1, 256)
    assert session["texts"].generated.shape == (1, 16)
    assert session["served"].edits[1].name == "quiet" and session["logits"].shape == (1, 515)
    assert session["scores"]["blocks.*.resid_post"].shape == (4, 1, 24)
    assert np.isfinite(session["diff"].kl).all() and session["diff"].kl.mean() > 0
    assert session["edges"].attn.shape == (9, 4, 1)
    run, base, clean = (session[name] for name in ("models", "base", "clean"))
    # From the last layer's patched stream on only the fine-tune's own last block is left.
    patched, plain = session["both"].logits[1], run.run(session["ft"], clean)[0]
    assert np.abs(patched - plain).max() > 1e-3
    assert np.abs(session["both"].logits[0] - run.run(base, clean)[0]).max() < 1e-4
