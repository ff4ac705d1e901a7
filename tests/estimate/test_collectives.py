"""Traffic read from compiled programs on 8 devices whose collectives are known, and from text."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxdiff.estimate.collectives import Volume, collectives
from jaxdiff.mesh import make_mesh

WHOLE = P()


def of(f, *, out=WHOLE, data=2, shape=(64, 32)):
    """Returns the traffic of a function of one device's part of `x`, rows split over `data`."""
    mesh = make_mesh(data, 8 // data)
    split = jax.shard_map(f, mesh=mesh, in_specs=P("data"), out_specs=out, check_vma=False)
    return collectives(jax.jit(split).lower(jnp.zeros(shape)).compile().as_text(), 8)


def test_an_all_reduce_of_known_size():
    # Each device has 32 x 32 float32 numbers, and a ring of 4 sends 2 * 3/4 of them.
    assert of(lambda x: lax.psum(x, "latent"), out=P("data")) == {
        "all-reduce": Volume(1, 4096, 6144, 4)
    }


def test_each_kind():
    assert of(lambda x: lax.all_gather(x, "data", tiled=True)) == {
        "all-gather": Volume(1, 8192, 4096, 2)
    }
    scatter = functools.partial(lax.psum_scatter, axis_name="latent", tiled=True)
    assert of(scatter, out=P(("data", "latent"))) == {"reduce-scatter": Volume(1, 4096, 3072, 4)}
    swap = functools.partial(
        lax.all_to_all, axis_name="latent", split_axis=0, concat_axis=1, tiled=True
    )
    assert of(swap, out=P("data"))["all-to-all"].bytes == 4096
    shift = functools.partial(lax.ppermute, axis_name="data", perm=[(0, 1), (1, 0)])
    assert of(shift, out=P("data"))["collective-permute"].bytes == 4096


def test_a_loop_counts_as_often_as_it_runs_and_a_condition_by_its_costlier_branch():
    def loop(x):
        return lax.fori_loop(0, 5, lambda _, x: lax.psum(jnp.sin(x), "latent"), x)

    assert of(loop, out=P("data"))["all-reduce"] == Volume(5, 5 * 4096, 5 * 6144, 4)

    def condition(x):
        big = functools.partial(lax.psum, axis_name="latent")
        return lax.cond(x[0, 0] > 0, big, lambda x: x.at[:1].set(lax.psum(x[:1], "latent")), x)

    found = of(condition, out=P("data"))["all-reduce"]
    assert (found.count, found.bytes) == (1, 4096)


def test_a_program_on_one_device_sends_nothing():
    assert of(lambda x: x + 1, out=P("data")) == {}


@pytest.mark.parametrize(
    ("line", "volume"),
    [
        # Forms of GPU and TPU compilers: started early, in two operands, groups as a lattice.
        (
            "%g = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%p), "
            "replica_groups=[2,4]<=[8]",
            ("all-gather", Volume(1, 256, 192, 4)),
        ),
        (
            "%r = (f32[8]{0}, s32[2]{0}) all-reduce(%a, %b), "
            "replica_groups=mesh['x'=2,'y'=4] {'y'}",
            ("all-reduce", Volume(1, 40, 60, 4)),
        ),
        (
            "%s = f32[8]{0:T(128)} all-reduce-start(%a), "
            "replica_groups={{0,1},{2,3}}, to_apply=%add",
            ("all-reduce", Volume(1, 32, 32, 2)),
        ),
        (
            "%c = (u8[6], u8[6], u32[], u32[]) collective-permute-start(%a), "
            "source_target_pairs={{0,1},{1,0}}",
            ("collective-permute", Volume(1, 6, 6, 2)),
        ),
        (
            "%t = pred[7]{0} reduce-scatter(%a), replica_groups={{0,1,2,3,4,5,6,7}}",
            ("reduce-scatter", Volume(1, 56, 49, 8)),
        ),
    ],
)
def test_forms_of_other_compilers(line, volume):
    text = f"HloModule m\n\nENTRY %main (p: f32[]) -> f32[] {{\n  {line}\n}}\n"
    assert collectives(text, 8) == dict([volume])


def test_what_is_fused_or_started_inside_another_computation_counts():
    text = """HloModule m

%async (p: f32[4]) -> f32[16] {
  ROOT %g = f32[16]{0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (p: f32[4]) -> f32[16] {
  %s = ((f32[4]{0}), f32[16]{0}, s32[]) async-start(%p), calls=%async
  ROOT %d = f32[16]{0} async-done(%s)
}
"""
    assert collectives(text, 4) == {"all-gather": Volume(1, 64, 48, 4)}
