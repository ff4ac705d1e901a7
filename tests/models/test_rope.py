import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.models import Rope
from jaxdiff.models.rope import angles, frequencies, rotate


def _normal(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


@functools.partial(jax.jit, static_argnames="rope")
def _turn(x, rope, positions):
    return rotate(x, *angles(rope, x.shape[-1], positions))


def test_rotation_is_multiplication_by_a_phase():
    x = _normal(2, 5, 3, 8)
    positions = jnp.asarray([[0, 1, 2, 3, 4], [7, 0, 1, 8000, 2]])
    out = np.asarray(_turn(x, Rope(theta=50.0), positions), np.float64)
    pairs = np.asarray(x[..., :4], np.float64) + 1j * np.asarray(x[..., 4:], np.float64)
    phase = np.asarray(positions)[:, :, None, None] * 50.0 ** (-np.arange(4) / 4)
    turned = pairs * np.exp(1j * phase)
    # A float32 angle of 8000 radians is known to 5e-4.
    np.testing.assert_allclose(out[..., :4], turned.real, atol=2e-3)
    np.testing.assert_allclose(out[..., 4:], turned.imag, atol=2e-3)
    np.testing.assert_allclose(out[0], np.concatenate([turned.real, turned.imag], -1)[0], atol=1e-5)


def test_scores_depend_on_distance_only():
    q, k = _normal(2, 1, 1, 1, 8)

    def score(i, j):
        turned = [np.asarray(_turn(x, Rope(), jnp.asarray([[p]]))) for x, p in ((q, i), (k, j))]
        return float(np.sum(turned[0] * turned[1]))

    assert abs(score(3, 1) - score(103, 101)) < 1e-4
    assert abs(score(3, 1) - score(4, 1)) > 1e-3


def test_llama3_scaling_by_cases():
    rope = Rope(theta=1000.0, kind="llama3", factor=8.0, low_freq=1.0, high_freq=4.0, context=64)
    found = frequencies(rope, 32)
    plain = frequencies(Rope(theta=1000.0), 32)
    kinds = set()
    for got, base in zip(found.tolist(), plain.tolist(), strict=True):
        wavelength = 2 * np.pi / base
        if wavelength < 64 / 4:
            kinds.add("kept")
            expected = base
        elif wavelength > 64 / 1:
            kinds.add("stretched")
            expected = base / 8
        else:
            kinds.add("between")
            smooth = (64 / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * base / 8 + smooth * base
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert kinds == {"kept", "stretched", "between"}


def test_linear_scaling_stretches_all_wavelengths():
    stretched = frequencies(Rope(theta=50.0, kind="linear", factor=4.0), 8)
    np.testing.assert_allclose(stretched, frequencies(Rope(theta=50.0), 8) / 4, rtol=1e-6)


LONGROPE = Rope(
    theta=50.0,
    dim=4,
    kind="longrope",
    context=6,
    short=(1.0, 3.0),
    long=(2.0, 7.0),
    attention_factor=1.25,
)


def test_longrope_chooses_its_factors_by_the_length_of_each_row():
    positions = np.asarray([[0, 1, 5], [0, 1, 6]])
    cos, sin = angles(LONGROPE, 8, positions)
    base = 50.0 ** (-np.arange(2) / 2)
    for row, factors in enumerate([(1.0, 3.0), (2.0, 7.0)]):
        phase = positions[row, :, None] * base / np.asarray(factors)
        np.testing.assert_allclose(cos[row], 1.25 * np.cos(phase), atol=1e-6)
        np.testing.assert_allclose(sin[row], 1.25 * np.sin(phase), atol=1e-6)


def test_longrope_of_a_piece_of_a_text_goes_by_the_length_of_the_text():
    whole = angles(LONGROPE, 8, np.arange(9)[None])
    piece = angles(LONGROPE, 8, np.arange(3)[None], lengths=np.asarray([9]))
    other = angles(LONGROPE, 8, np.arange(3)[None])
    for a, b, c in zip(whole, piece, other, strict=True):
        np.testing.assert_array_equal(a[:, :3], b)
        assert not np.allclose(b, c)


def test_only_the_first_coordinates_of_a_head_are_rotated():
    x, positions = _normal(1, 3, 2, 8), jnp.asarray([[0, 1, 2]])
    turned = rotate(x, *angles(Rope(theta=50.0, dim=4), 8, positions))
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    alone = rotate(x[..., :4], *angles(Rope(theta=50.0), 4, positions))
    np.testing.assert_array_equal(turned[..., :4], alone)
    assert not np.allclose(turned[:, 1:, :, :4], x[:, 1:, :, :4])


def test_angles_are_float32_for_bfloat16_activations():
    x = _normal(1, 2, 1, 8).astype(jnp.bfloat16)
    cos, sin = angles(Rope(), 8, jnp.asarray([[4095, 4096]]))
    assert cos.dtype == sin.dtype == jnp.float32
    assert rotate(x, cos, sin).dtype == jnp.bfloat16
    assert abs(float(cos[0, 1, 0]) - np.cos(4096)) < 1e-5
