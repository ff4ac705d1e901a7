"""Checkpoints: round trip over meshes, retention, writing beside the run, damage."""

import errno
import threading
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
        jax.device_put(jnp.arange(4096.0) + offset, sharding(mesh, "latent")),
    )


def write(folder, *steps, **keep):
    """Saves states that begin with their step."""
    with checkpoint.Writer(folder, **keep) as writer:
        for step in steps:
            writer.save(step, state(make_mesh(1, 1), step), {"step": step})


def read(folder, step=None):
    return checkpoint.restore(folder, lambda record: state(make_mesh(1, 1)), step)


def test_round_trip_to_another_mesh(tmp_path):
    record = {"at": [1, None, {"x": "y"}], "text": "ü"}
    with checkpoint.Writer(tmp_path) as writer:
        writer.save(7, state(make_mesh(2, 4)), record)
    like, seen = state(make_mesh(1, 8)), []
    step, found, kept = checkpoint.restore(tmp_path, lambda record: seen.append(record) or like)
    assert seen == [record]
    assert (step, kept) == (7, record)
    assert found.a.sharding == like.a.sharding
    jax.tree.map(np.testing.assert_array_equal, found, like)
    assert found.z[0].dtype == jnp.int32


def test_only_the_newest_stay(tmp_path):
    assert read(tmp_path) is None
    write(tmp_path, 5, 10, 100)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000010", "000000100"]
    assert float(read(tmp_path)[1].a[0]) == 100
    checkpoint.remove(tmp_path)
    assert not tmp_path.exists()


def test_some_stay_for_good(tmp_path):
    write(tmp_path, 5, 10, 15, 20, 25, 30, keep_last=1, keep_every=10)
    assert [int(p.name) for p in sorted(tmp_path.iterdir())] == [10, 20, 30]
    assert float(read(tmp_path, step=20)[1].a[0]) == 20
    assert read(tmp_path, step=15) is None
    write(tmp_path, 33, keep_last=1, keep_every=10)
    checkpoint.remove(tmp_path, keep_every=10)
    assert [int(p.name) for p in sorted(tmp_path.iterdir())] == [10, 20, 30]


def test_the_state_may_change_while_it_is_written(tmp_path):
    double = jax.jit(lambda s: jax.tree.map(lambda a: 2 * a, s), donate_argnums=0)
    large = jax.device_put(jnp.arange(2_000_000.0), sharding(make_mesh(1, 8), "latent"))
    with checkpoint.Writer(tmp_path, keep_last=4) as writer:
        for step in range(4):
            writer.save(step, {"a": large}, {})
            large = double(double(large))
    like = jax.ShapeDtypeStruct(large.shape, large.dtype, sharding=large.sharding)
    for step in range(4):
        _, found, _ = checkpoint.restore(tmp_path, lambda record: {"a": like}, step)
        np.testing.assert_array_equal(found["a"], np.arange(2_000_000.0) * 4**step)


def test_a_save_goes_on_beside_the_run_and_the_next_one_waits(tmp_path, monkeypatch):
    from orbax.checkpoint import v1 as ocp

    started, finish, real = [], threading.Event(), ocp.save_async

    class Slow:
        def __init__(self, response):
            self.response = response

        def result(self):
            assert finish.wait(60)
            self.response.result()

    def save_async(path, *args, **kwargs):
        started.append(path)
        return Slow(real(path, *args, **kwargs))

    monkeypatch.setattr(ocp, "save_async", save_async)
    with checkpoint.Writer(tmp_path) as writer:
        writer.save(1, state(make_mesh(1, 1)), {})
        assert len(started) == 1  # It returned, and the write has not ended.
        later = threading.Timer(0.2, lambda: started.append("finished") or finish.set())
        later.start()
        writer.save(2, state(make_mesh(1, 1)), {})
        assert [str(name)[-1] for name in started] == ["1", "d", "2"]


def test_a_save_that_fails_is_told_once_and_hides_no_other_error(tmp_path, monkeypatch, capfd):
    from orbax.checkpoint import v1 as ocp

    class Full:
        def result(self):
            raise OSError("no space left")

    monkeypatch.setattr(ocp, "save_async", lambda *args, **kwargs: Full())
    with pytest.raises(JaxdiffError, match="cannot be written: no space left.*GiB free") as error:
        write(tmp_path, 3)
    assert error.value.where.endswith("000000003")
    with pytest.raises(KeyError), checkpoint.Writer(tmp_path) as writer:
        writer.save(3, state(make_mesh(1, 1)), {})
        raise KeyError("the first error")
    assert "no space left" in capfd.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "missing", "flag", "unnoticed", "described"])
def test_damage_falls_back_and_then_is_named(tmp_path, damage):
    write(tmp_path, 1, 2)

    def spoil(step):
        files = [p for p in (tmp_path / f"{step:09d}" / "state").rglob("*") if p.is_file()]
        largest = max(files, key=lambda p: p.stat().st_size)
        if damage in ("unnoticed", "described"):
            # Killed before the sizes were written: Orbax has to find it.
            (tmp_path / f"{step:09d}" / checkpoint._SIZES).unlink()
        if damage == "described":
            (tmp_path / f"{step:09d}" / "state" / "_sharding").write_bytes(b"{")
        elif damage in ("truncated", "unnoticed"):
            largest.write_bytes(largest.read_bytes()[:10])
        elif damage == "missing":
            largest.unlink()
        else:
            (tmp_path / f"{step:09d}" / "_CHECKPOINT_METADATA").write_text("{")

    spoil(2)
    assert read(tmp_path)[2] == {"step": 1}
    spoil(1)
    with pytest.raises(JaxdiffError, match="no checkpoint can be read.*000000002.*000000001"):
        read(tmp_path)


@pytest.mark.parametrize("error", [JaxdiffError("other settings"), ValueError("a mistake")])
def test_what_the_caller_raises_is_no_damage(tmp_path, error):
    write(tmp_path, 1, 2)

    def refuse(record):
        raise error

    with pytest.raises(type(error), match=error.args[0]):
        checkpoint.restore(tmp_path, refuse)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "too many open files"),
        MemoryError("no memory"),
        TypeError("a mistake"),
        ValueError("RESOURCE_EXHAUSTED: the disk is full"),
        ValueError("PERMISSION_DENIED: not yours"),
    ],
)
def test_what_says_nothing_about_the_files_is_no_damage(tmp_path, monkeypatch, error):
    from orbax.checkpoint import v1 as ocp

    def load(*args):
        raise error

    write(tmp_path, 1, 2)
    monkeypatch.setattr(ocp, "load", load)
    with pytest.raises(type(error), match=error.args[-1]):
        read(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s._replace(a=s.a[:8]), r"a: float32\[4096\], not float32\[8\]"),
        (lambda s: s._replace(a=s.a.astype(jnp.int32)), r"a: float32\[4096\], not int32\[4096\]"),
        (lambda s: s._replace(z=(*s.z, s.a)), r"z.1: none, not float32\[4096\]"),
        (lambda s: s._replace(z=()), r"z.0: int32\[\], not none"),
    ],
)
def test_other_arrays_are_no_damage(tmp_path, change, said):
    write(tmp_path, 1, 2)
    with pytest.raises(
        JaxdiffError, match=f"has other arrays than these settings make, such as {said}"
    ):
        checkpoint.restore(tmp_path, lambda record: change(state(make_mesh(1, 1))))


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    write(tmp_path, 1)
    for name in ("000000002.orbax-checkpoint-tmp", "000000000.removed"):
        (tmp_path / name).mkdir()
    assert read(tmp_path)[0] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["000000001"]
