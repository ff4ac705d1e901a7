"""Every verdict, on data whose truth is known and for every rule alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import dictionaries
from jaxdiff.config import DiffConfig
from jaxdiff.diffing import (
    VERDICTS,
    LatentScaling,
    latent_scaling,
    reasons,
    relative_norm,
    scaling_statistic,
    verdicts,
)
from jaxdiff.stats import InMemory, blocks, fold

pytestmark = pytest.mark.smoke


def _judge(data):
    d = data.dictionary
    statistic = scaling_statistic(d.W_dec, resamples=60, key=jax.random.key(0))
    sums = fold(
        {"scaling": statistic},
        blocks(InMemory.of(data.batch), 2000),
        dictionary=d,
        mean=np.zeros((2, 32), np.float32),
        scale=np.ones(2, np.float32),
    )["scaling"]
    scaling = latent_scaling(statistic, sums)
    relative = relative_norm(dictionaries.decoder_norms(d))
    return verdicts(relative, scaling, DiffConfig()), scaling, relative


def test_a_right_dictionary_gets_right_verdicts(planted):
    data = planted(rows=4000)
    verdict, scaling, relative = _judge(data)
    assert (verdict[data.names == "shared"] == "shared").all()
    for kind, side in {"ft_only": 1, "base_only": 0}.items():
        assert (verdict[data.names == kind] == "exclusive").all()
        assert (scaling.side[data.names == kind] == side).all()
    weak = data.names == "weak"
    assert (verdict[weak] == "undecided").all()
    np.testing.assert_allclose(scaling.nu_reconstruction[weak, 0], 0.35, atol=0.02)
    np.testing.assert_allclose(scaling.nu_error[weak, 0], 0.35, atol=0.02)
    why = reasons(verdict, relative, scaling, DiffConfig())
    assert (why[weak] == "the other model has it at a lower gain").all()
    assert (why[~weak] == "").all()


@pytest.mark.parametrize("gone", [0, 1])
def test_a_shared_latent_without_one_decoder_is_shrunk(planted, gone):
    data = planted(rows=4000)
    d = data.dictionary
    data.dictionary = dataclasses.replace(d, W_dec=d.W_dec.at[0, gone].set(0))
    verdict, scaling, relative = _judge(data)
    assert relative[0] == 1 - gone and scaling.side[0] == 1 - gone
    assert verdict[0] == "shrunk" and verdict[1] == "shared"
    assert abs(scaling.nu_error[0, 0] - 1) < 0.1 and abs(scaling.nu_reconstruction[0, 0]) < 0.1


def test_a_shared_concept_written_twice_is_decoupled(planted):
    data = planted(kinds=("shared", "ft_only"), rows=4000)
    d = data.dictionary
    # Latents 0 and 1 both read concept 0; one writes it to base, the other to ft.
    W_enc = d.W_enc.at[:, :, 1].set(d.W_enc[:, :, 0])
    W_dec = d.W_dec.at[1].set(d.W_dec[0])
    W_dec = W_dec.at[0, 1].set(0).at[1, 0].set(0)
    data.dictionary = dataclasses.replace(d, W_enc=W_enc, W_dec=W_dec)
    verdict, scaling, relative = _judge(data)
    assert relative[:2].tolist() == [0, 1]
    assert verdict.tolist() == ["decoupled", "decoupled", "exclusive", "exclusive"]
    np.testing.assert_allclose(scaling.nu_reconstruction[:2, 0], 1, atol=0.05)


def test_a_half_shrunk_latent_of_class_other_is_shrunk(planted):
    data = planted(rows=4000)
    d = data.dictionary
    data.dictionary = dataclasses.replace(d, W_dec=d.W_dec.at[0, 0].multiply(0.3))
    verdict, scaling, relative = _judge(data)
    assert relative[0] == pytest.approx(0.85) and verdict[0] == "shrunk"
    assert scaling.put_back[0] < 0.4 < scaling.nu_error[0, 0]


def test_a_rotated_concept_is_not_exclusive(planted):
    data = planted(kinds=("ft_only", "base_only"), each=2, rows=4000)
    d = data.dictionary
    # One latent stands for an ft-only and a base-only concept that always come together.
    on = data.batch.x.copy()
    on[:, 0] = data.batch.x[:, 1] @ np.asarray(
        jnp.einsum("ld,le->de", d.W_dec[:2, 1], d.W_dec[2:, 0])
    )
    data.batch = dataclasses.replace(data.batch, x=on)
    W_dec = d.W_dec.at[:2, 0].set(d.W_dec[2:, 0])
    bias = d.b_enc.at[2:].set(-1e3)
    data.dictionary = dataclasses.replace(d, W_dec=W_dec, b_enc=bias)
    verdict, scaling, relative = _judge(data)
    assert (np.abs(scaling.nu_reconstruction[:2, 0]) < 0.1).all()
    assert verdict[:2].tolist() == ["undecided", "undecided"]
    why = reasons(verdict, relative, scaling, DiffConfig())
    assert why[:2].tolist() == ["its two decoders point apart"] * 2


def test_a_latent_carried_by_few_documents_is_undecided(planted):
    data = planted(rows=4000, length=1000)
    verdict, scaling, relative = _judge(data)
    assert (scaling.sequences < 8).all() and (verdict == "undecided").all()
    why = reasons(verdict, relative, scaling, DiffConfig())
    assert (why == "fewer than 8 effective sequences carry it").all()


# relative_norm, nu^r, nu^eps, put back -> verdict; one rule or one boundary each.
RULES = [
    (1.0, (0.1, 0.0, 0.2), (0.0, -0.1, 0.1), 0.0, "exclusive"),
    (0.0, (-0.9, -1.0, -0.8), (-0.5, -0.6, -0.4), 0.0, "exclusive"),
    (0.8, (0.1, 0.0, 0.2), (0.0, -0.1, 0.1), 0.0, "exclusive"),
    (0.2, (0.1, 0.0, 0.2), (0.0, -0.1, 0.1), 0.0, "exclusive"),
    (0.7, (0.1, 0.0, 0.2), (0.0, -0.1, 0.1), 0.0, "undecided"),
    (0.5, (0.1, 0.0, 0.2), (0.0, -0.1, 0.1), 0.0, "undecided"),
    (1.0, (0.4, 0.3, 0.6), (0.0, -0.1, 0.1), 0.0, "undecided"),
    (1.0, (0.1, 0.0, 0.2), (0.2, 0.1, 0.3), 0.0, "undecided"),
    (1.0, (0.1, 0.0, 0.2), (0.4, 0.3, 0.5), 0.0, "shrunk"),
    (0.0, (0.9, 0.8, 1.0), (0.0, -0.1, 0.1), 0.0, "decoupled"),
    (0.9, (0.9, 0.8, 1.0), (0.5, 0.4, 0.6), 0.0, "shrunk"),
    (0.9, (0.9, 0.8, 1.0), (0.3, 0.25, 0.4), 0.0, "decoupled"),
    (0.9, (0.9, 0.3, 1.5), (0.3, 0.25, 0.4), 0.0, "shrunk"),
    (0.5, (0.9, 0.8, 1.0), (0.9, 0.8, 1.0), 0.9, "shared"),
    (0.8, (0.9, 0.8, 1.0), (0.1, 0.0, 0.2), 0.4, "shared"),
    (0.3, (0.6, 0.5, 0.7), (0.6, 0.5, 0.7), 0.6, "shared"),
    (0.8, (0.4, 0.3, 0.45), (0.9, 0.8, 1.0), 0.4, "shrunk"),
    (0.8, (0.4, 0.3, 0.45), (0.5, 0.4, 0.6), 0.4, "undecided"),
    (1.0, (np.nan,) * 3, (np.nan,) * 3, np.nan, "undecided"),
]


@pytest.mark.parametrize(("relative", "nu_r", "nu_e", "put_back", "expected"), RULES)
def test_each_rule(relative, nu_r, nu_e, put_back, expected):
    blank = np.zeros((1, 2))
    scaling = LatentScaling(
        side=np.array([1]),
        beta_reconstruction=blank,
        beta_error=blank,
        beta_activation=blank,
        nu_reconstruction=np.array([nu_r]),
        nu_error=np.array([nu_e]),
        put_back=np.array([put_back]),
        sequences=np.array([100.0]),
        reason=np.array(["not defined" if np.isnan(put_back) else ""]),
    )
    got = verdicts(np.array([relative]), scaling, DiffConfig())
    assert got.tolist() == [expected] and expected in VERDICTS
    why = reasons(got, np.array([relative]), scaling, DiffConfig())[0]
    assert (why != "") == (expected == "undecided")
