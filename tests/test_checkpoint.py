"""Checkpoints: round trip over meshes, retention, damage."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import checkpoint
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import make_mesh, sharding


class State(NamedTuple):
    z: tuple  # Names that are not in alphabetical order.
    a: jax.Array


def state(mesh, offset=0.0):
    return State(
        (jax.device_put(jnp.int32(3), sharding(mesh)),),
        jax.device_put(jnp.arange(16.0) + offset, sharding(mesh, "latent")),
    )


def test_round_trip_to_another_mesh(tmp_path):
    record = {"at": [1, None, {"x": "y"}], "text": "ü"}
    checkpoint.save(tmp_path, 7, state(make_mesh(2, 4)), record)
    like = state(make_mesh(1, 8))
    step, found, kept = checkpoint.restore(tmp_path, like)
    assert (step, kept) == (7, record)
    assert found.a.sharding == like.a.sharding
    jax.tree.map(np.testing.assert_array_equal, found, like)
    assert found.z[0].dtype == jnp.int32


def test_only_the_newest_stay(tmp_path):
    mesh = make_mesh(1, 1)
    assert checkpoint.restore(tmp_path, state(mesh)) is None
    for step in (5, 10, 100):
        checkpoint.save(tmp_path, step, state(mesh, step), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000010", "000000100"]
    assert float(checkpoint.restore(tmp_path, state(mesh))[1].a[0]) == 100
    checkpoint.remove(tmp_path)
    assert not tmp_path.exists()


@pytest.mark.parametrize("damage", ["truncated", "missing", "flag"])
def test_damage_falls_back_and_then_is_named(tmp_path, damage):
    mesh = make_mesh(1, 1)
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state(mesh, step), {"step": step})

    def spoil(step):
        files = [p for p in (tmp_path / f"{step:09d}" / "state").rglob("*") if p.is_file()]
        largest = max(files, key=lambda p: p.stat().st_size)
        if damage == "truncated":
            largest.write_bytes(largest.read_bytes()[:10])
        elif damage == "missing":
            largest.unlink()
        else:
            (tmp_path / f"{step:09d}" / "_CHECKPOINT_METADATA").write_text("{")

    spoil(2)
    assert checkpoint.restore(tmp_path, state(mesh))[2] == {"step": 1}
    spoil(1)
    with pytest.raises(JaxdiffError, match="no checkpoint can be read.*000000002.*000000001"):
        checkpoint.restore(tmp_path, state(mesh))


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    checkpoint.save(tmp_path, 1, state(make_mesh(1, 1)), {})
    for name in ("000000002.orbax-checkpoint-tmp", "000000000.removed"):
        (tmp_path / name).mkdir()
    assert checkpoint.restore(tmp_path, state(make_mesh(1, 1)))[0] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["000000001"]
