"""Generation step by step against one run of the final texts."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import edits, models
from jaxdiff.edits import Add, Patch, PerLayer, Scale, Set, edit, reducers
from jaxdiff.models import ModelConfig, Rope, Tap, generate, init, run, unstack

QUICK = {"xla_backend_optimization_level": 0}

PLAIN = dict(vocab_size=24, d_model=16, n_layers=4, n_heads=4, n_kv_heads=2, d_mlp=24)
SPECS = {
    "llama": ModelConfig(**PLAIN, rope=Rope(theta=100.0), attention_bias=True, tied=False),
    "gemma2": ModelConfig(
        **PLAIN,
        post_norms=True,
        attention_softcap=2.0,
        logit_softcap=3.0,
        windows=(3, None, 3, None),
        embed_scale=True,
    ),
    "gemma3": ModelConfig(
        **PLAIN,
        qk_norm="head",
        rope=Rope(theta=1000.0, kind="linear", factor=4.0),
        local_rope=Rope(theta=100.0),
        windows=(4, 4, None, 4),
    ),
    "gpt2": ModelConfig(**PLAIN, rope=None, gated=False, norm="layer", context=16),
    "neox": ModelConfig(**PLAIN, parallel=True, norm="layer", rope=Rope(theta=50.0, dim=2)),
    "longrope": ModelConfig(
        **PLAIN,
        rope=Rope(
            theta=50.0, kind="longrope", context=11, short=(1.0, 2.0), long=(3.0, 5.0), dim=4
        ),
    ),
    "experts": ModelConfig(**PLAIN, experts=5, experts_per_token=2, normalize_experts=True),
}


def make(name):
    lm = init(SPECS[name], key=jax.random.key(0))
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.2, x.shape).astype(np.float32), lm)


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 24, shape).astype(np.int32)


def left(lengths, columns):
    return np.arange(columns)[None] >= columns - np.asarray(lengths)[:, None]


def quickly(f, *args):
    return jax.jit(f, compiler_options=QUICK)(*args)


def one_run(lm, texts, edits=(), taps=()):
    """Reads all that was run of finished texts at once."""

    def read(lm, tokens, sequences, positions, edits):
        return run(lm, tokens, taps, edits, sequences=sequences, positions=positions)

    parts = (texts.tokens, texts.sequences, texts.positions)
    return quickly(read, lm, *(part[:, :-1] for part in parts), edits)


TAPS = ("embed", "blocks.1.resid_post", "blocks.2.attn.pattern", "blocks.*.attn.z", "logits")


def close(found, expected, real, atol=2e-5):
    """Compares taps at the tokens of the texts."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        moved = (0, 2) if "*" in name else (2, 1) if "pattern" in name else (1, 1)
        mine, other = (np.moveaxis(v, *moved) for v in (found[name], value))
        np.testing.assert_allclose(mine[real], other[real], rtol=1e-4, atol=atol, err_msg=name)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("apart", [False, True], ids=["stacked", "apart"])
def test_edited_steps_equal_one_edited_run(name, apart):
    """Ragged prompts, and edits that do the same to a token whatever step runs it."""
    lm, rng = make(name), np.random.default_rng(3)
    lm = unstack(lm) if apart else lm

    def normal(*shape):
        return rng.normal(0, 0.3, shape).astype(np.float32)

    asked = (
        edit("blocks.*.resid_pre", PerLayer(Add(normal(4, 16), 0.5))),
        edit("blocks.1.attn.z", Scale(0.0), heads=[1]),
        edit("blocks.2.resid_post", Add(normal(16)), positions=[0, 6, 8]),
        edit("blocks.0.attn_out", Set(normal(16)), positions=1, rows=0),
        edit("blocks.1.mlp_out", Patch(normal(1, 3, 16))),
        edit("blocks.3.mlp.post", Scale(normal(2, 1, 1) if not SPECS[name].experts else 0.5)),
    )
    mask = left((7, 4), 7)
    generation = quickly(
        lambda lm, t, m, e: generate(lm, t, 6, mask=m, edits=e, taps=TAPS),
        lm,
        tokens(2, 7),
        mask,
        asked,
    )
    logits, expected = one_run(lm, generation, asked, TAPS)
    real = np.asarray(generation.sequences)[:, :-1] >= 0
    assert real.sum(1).tolist() == [12, 9]
    close(generation.taps, expected, real)
    np.testing.assert_array_equal(generation.generated, np.argmax(logits, -1)[:, 6:])
    chosen = np.take_along_axis(
        jax.nn.log_softmax(logits)[:, 6:], generation.generated[..., None], 2
    )
    np.testing.assert_allclose(generation.log_probs, chosen[..., 0], rtol=1e-4, atol=2e-5)
    without = one_run(lm, generation, jax.tree.map(np.zeros_like, asked))[0]
    assert np.abs(without - logits)[:, -1].max() > 1e-2


def test_a_bfloat16_cache_is_as_good_as_a_bfloat16_run():
    lm = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make("gemma2"))
    texts = quickly(lambda lm, t: generate(lm, t, 6, taps=("logits",)), lm, tokens(2, 5))
    logits, _ = one_run(lm, texts)
    assert texts.taps["logits"].dtype == jnp.bfloat16
    error = texts.taps["logits"].astype(np.float32) - logits.astype(np.float32)
    assert np.linalg.norm(error) < 0.02 * np.linalg.norm(logits.astype(np.float32))


def test_steps_are_positions_after_the_prompt():
    lm, vector = make("llama"), np.ones(16, np.float32)

    def go(**where):
        asked = (edit("blocks.1.resid_post", Add(vector), **where),)
        return quickly(
            lambda lm, t, e: generate(lm, t, 6, edits=e, taps=("blocks.3.resid_post",)),
            *(lm, tokens(2, 5), asked),
        )

    def same(*both):
        for a, b in zip(*map(jax.tree.leaves, both), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

    for steps, positions in (
        (0, [0, 1, 2, 3, 4]),
        ([2, 3], [6, 7]),
        (np.arange(9) >= 1, np.arange(10) >= 5),
    ):
        same(go(steps=steps), go(positions=positions))
    # Every token that was generated is the last of its step; of the prompt one is.
    same(go(positions=-1), go(positions=[4, 5, 6, 7, 8, 9]))


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gpt2", "experts"])
def test_padding_changes_nothing(name):
    """Before the text, after it, or inside: windows count tokens, not columns."""
    lm, ids = make(name), tokens(1, 6)
    alone = quickly(lambda lm, t: generate(lm, t, 7, taps=TAPS[1:2]), lm, ids)

    def padded(lm, t, m):
        return generate(lm, t, 7, mask=m, taps=TAPS[1:2])

    for columns in ([3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5], [0, 2, 3, 6, 7, 8]):
        prompt, mask = tokens(2, 9, seed=5), np.ones((2, 9), bool)
        mask[0] = np.isin(np.arange(9), columns)
        prompt[0, columns] = ids
        found = quickly(padded, lm, prompt, mask)
        np.testing.assert_array_equal(found.generated[0], alone.generated[0])
        np.testing.assert_allclose(found.log_probs[0], alone.log_probs[0], atol=1e-5)
        kept = np.concatenate([columns, np.arange(9, 15)])
        values = (found.taps[TAPS[1]][0, kept], alone.taps[TAPS[1]][0])
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "experts"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_rows_do_not_see_each_other(name, temperature):
    lm, prompts = make(name), tokens(3, 5)

    def go(prompts, mask, vector):
        asked = (edit("blocks.1.resid_post", Add(vector), rows=[1, 2]),)
        options = dict(edits=asked, taps=("logits",), temperature=temperature)
        return generate(lm, prompts, 6, mask=mask, key=jax.random.key(0), **options)

    f = jax.jit(go, compiler_options=QUICK)
    mask, vector = left((4, 5, 5), 5), np.ones(16, np.float32)
    other = prompts.copy()
    other[1:] = (other[1:] + 1) % 24
    one, two = f(prompts, mask, vector), f(other, left((4, 2, 1), 5), np.float32(3) * vector)
    for a, b in ((one.tokens, two.tokens), (one.log_probs, two.log_probs)):
        np.testing.assert_array_equal(a[0], b[0])
        assert (np.asarray(a[1]) != b[1]).any()
    np.testing.assert_array_equal(one.taps["logits"][0], two.taps["logits"][0])


def test_rows_end_at_stop_tokens_and_the_loop_with_the_last():
    lm, prompts = make("gemma2"), tokens(2, 5)
    free = generate(lm, prompts, 8).generated
    stop = (int(free[0, 2]), int(free[1, 4]))
    expected = [next(i + 1 for i, t in enumerate(row) if t in stop) for row in np.asarray(free)]
    texts = generate(lm, prompts, 8, stop=stop, taps=("blocks.2.resid_mid",))
    assert texts.lengths.tolist() == expected and max(expected) < 8
    for row, n in enumerate(expected):
        np.testing.assert_array_equal(texts.generated[row, :n], free[row, :n])
        assert not texts.generated[row, n:].any() and not texts.log_probs[row, n:].any()
        assert (texts.sequences[row, 5 + n :] == -1).all()
    # A token that ended its row is not run, nor is anything after the last row has ended.
    values = texts.taps["blocks.2.resid_mid"]
    assert not values[:, 4 + max(expected) :].any()
    _, found = one_run(lm, texts, taps=("blocks.2.resid_mid",))
    for row, n in enumerate(expected):
        kept = slice(0, 4 + n)
        np.testing.assert_allclose(
            values[row, kept], found["blocks.2.resid_mid"][row, kept], rtol=1e-4, atol=1e-5
        )
    spec = dataclasses.replace(lm.spec, eos=stop)
    own = generate(dataclasses.replace(lm, spec=spec), prompts, 8)
    np.testing.assert_array_equal(own.tokens, texts.tokens)


def test_what_keeps_the_axis_of_tokens_is_joined_and_the_rest_is_stacked():
    lm, site = make("llama"), "blocks.1.resid_post"
    taps = (
        Tap(site, reduce=reducers.Last(), name="last"),
        Tap(site, reduce=reducers.Norm(), name="norm"),
        Tap("blocks.*.resid_post", reduce=reducers.TopK(2), name="largest"),
        Tap("blocks.*.resid_post", reduce=reducers.Last(), name="last of all"),
        Tap(site, view=edits.Heads(2), name="halves"),
        Tap(site, dtype="bfloat16", name="short"),
        site,
    )
    # A prompt of one token: the axes must not be guessed from sizes.
    found = generate(lm, tokens(3, 1), 5, taps=taps).taps
    value = found[site]
    assert value.shape == (3, 5, 16)
    np.testing.assert_array_equal(found["last"], value.swapaxes(0, 1))
    np.testing.assert_allclose(found["norm"], np.linalg.norm(value, axis=-1), rtol=1e-6)
    assert [leaf.shape for leaf in found["largest"]] == [(4, 3, 5, 2)] * 2
    np.testing.assert_array_equal(found["largest"][0][1], jax.lax.top_k(value, 2)[0])
    assert found["last of all"].shape == (5, 4, 3, 16)
    np.testing.assert_array_equal(found["last of all"][:, 1], found["last"])
    np.testing.assert_array_equal(found["halves"], value.reshape(3, 5, 2, 8))
    assert found["short"].dtype == jnp.bfloat16 and found["short"].shape == value.shape


def test_other_leaves_are_not_traced_again():
    lm, prompts = make("llama"), tokens(2, 5)

    def go(lm, seed, **options):
        vector = np.random.default_rng(seed).normal(size=16).astype(np.float32)
        asked = (edit("blocks.1.resid_post", Add(vector, 1.0 + seed), positions=[seed]),)
        key = jax.random.key(seed)
        return generate(lm, prompts + seed, 3, edits=asked, key=key, stop=(seed,), **options)

    one = go(lm, 1, temperature=0.0, top_p=0.9)
    before = models.traces()
    two = go(jax.tree.map(np.negative, lm), 2, temperature=0.7, top_p=0.5)
    assert models.traces() == before and (one.log_probs != two.log_probs).any()


def test_strengths_can_be_swept_in_one_program():
    lm, prompts, vector = make("llama"), tokens(2, 5), np.ones(16, np.float32)

    def go(strength):
        asked = (edit("blocks.1.resid_post", Add(vector, strength)),)
        return generate(lm, prompts, 4, edits=asked).log_probs

    strengths = np.float32([-1, 0, 2])
    swept = quickly(jax.vmap(go), strengths)
    each = np.stack([quickly(go, s) for s in strengths])
    np.testing.assert_allclose(swept, each, rtol=1e-4, atol=1e-5)


def test_no_step_copies_weights_or_the_cache():
    """Where the blocks' weights are apart; the loop's instructions are named after it."""
    spec = dataclasses.replace(SPECS["llama"], vocab_size=50, d_model=32, d_mlp=80, head_dim=16)
    lm = unstack(init(spec, key=jax.random.key(0)))
    compiled = jax.jit(lambda lm, t: generate(lm, t, 51)).lower(lm, tokens(4, 20)).compile()
    cache = 4 * 2 * 70 * 16
    made = re.compile(
        r"%\S+ = \w+\[([\d,]+)\]\S* (?!bitcast|get-tuple|parameter)[\w-]+\(.*/while/body/"
    )
    found = [m[0] for m in map(made.search, compiled.as_text().splitlines()) if m]
    assert len(found) > 100
    large = [m for m in found if np.prod(list(map(int, made.search(m)[1].split(",")))) >= cache]
    # All that is as large is the cache, which is written in place: nothing but keys and values.
    assert large and all("dynamic-update-slice" in m for m in large), large
    weight = (
        r"= \w+\[(16,32|32,16|64,32|32,64|80,32|32,80|50,32|32,50)\]\S* (copy|transpose|fusion)\("
    )
    assert not [m for m in found if re.search(weight, m)]
