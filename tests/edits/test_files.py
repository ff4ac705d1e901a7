"""What is saved comes back, equal things have equal hashes, and strange files are refused."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.dictionaries import Dictionary, Normalization
from jaxdiff.edits import (
    Add,
    Backward,
    Chain,
    Clamp,
    FromRow,
    FromWorld,
    Heads,
    Last,
    Latents,
    Lerp,
    LowRank,
    Mean,
    Noise,
    Norm,
    Patch,
    PerLayer,
    Project,
    Reconstruct,
    Scale,
    Set,
    Skip,
    Subspace,
    ToMean,
    TopK,
    content_hash,
    dumps,
    edit,
    load,
    loads,
    save,
)
from jaxdiff.edits._codec import REGISTRY
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import Tap

_V = np.arange(8, dtype=np.float32)
_DICTIONARY = Dictionary(
    *(jnp.ones((1, 8, 3)), jnp.zeros(3), jnp.ones((3, 1, 8)), jnp.zeros((1, 8)), jnp.float32(0.5)),
    activation="batch_topk",
    k=2.5,
    code_norm="sae",
)
_SPACE = Normalization(np.ones((1, 8), np.float32), np.full(1, 2.0, np.float32))

OPS = {
    "Set": Set(0.0),
    "Add": Add(_V, strength=4.0),
    "Scale": Scale(np.array([[True], [False]])),
    "Lerp": Lerp(jnp.asarray(_V, jnp.bfloat16), np.float32(0.5)),
    "Clamp": Clamp(high=3),
    "ToMean": ToMean(),
    "Noise": Noise(jax.random.key(3), 0.1),
    "LowRank": LowRank(np.ones((2, 8), np.float16), np.ones((8, 2), np.float16)),
    "Patch": Patch(_V.reshape(1, 1, 8), positions=np.array([0, 0], np.int32)),
    "FromRow": FromRow(np.array([1, 0])),
    "FromWorld": FromWorld(bias=_V, world=1),
    "PerLayer": PerLayer(Add(np.ones((3, 8), np.float32))),
    "Backward": Backward(Scale(0.5)),
    "Reconstruct": Reconstruct(_DICTIONARY, normalization=_SPACE),
}
VIEWS = {
    "Heads": Heads(2),
    "Subspace": Subspace(_V[:, None], complement=True),
    "Latents": Latents(_DICTIONARY, np.array([0, 2], np.int32), normalization=None),
}
REDUCERS = {
    "Last": Last(),
    "Mean": Mean(),
    "Norm": Norm(),
    "TopK": TopK(3),
    "Project": Project(_V[None]),
    "Chain": Chain((Norm(), Last())),
}
SELECTORS = (
    *({"positions": p} for p in (-1, [0, 2], [[0], [1], [2]], np.array([True, False]))),
    {"layers": [0, 2], "rows": 1, "heads": [0], "steps": [True, False]},
    {"layers": jnp.int32(1), "positions": np.ones((3, 5), bool)},
)
ITEMS = (
    *(edit("blocks.1.resid_post", op) for op in OPS.values()),
    *(edit("embed", Set(0.0), view=view) for view in VIEWS.values()),
    *(edit("blocks.*.attn.z", Add(1.0), **selectors) for selectors in SELECTORS),
    edit("blocks.2", Skip()),
    Tap("blocks.*.resid_post"),
    Tap("embed", view=VIEWS["Subspace"], reduce=TopK(2), dtype="bfloat16", name="strongest"),
    *(Tap("embed", reduce=reducer) for reducer in REDUCERS.values()),
)


def _same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert jnp.result_type(a) == jnp.result_type(b)
        assert [type(n) for n in (a, b) if isinstance(n, (bool, int, float))] in ([], [type(a)] * 2)
        if jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
        assert np.shape(a) == np.shape(b)


def test_everything_public_can_be_saved():
    here = {*OPS, *VIEWS, *REDUCERS, "Edit", "Skip", "Tap", "Dictionary", "Normalization"}
    assert here == set(REGISTRY)


@pytest.mark.parametrize("item", ITEMS, ids=range(len(ITEMS)))
def test_round_trip(item):
    (found,) = loads(dumps((item,)))
    assert type(found) is type(item)
    _same(found, item)
    assert content_hash((found,)) == content_hash((item,))
    assert dumps((found,)) == dumps((item,))


def test_all_in_one_file(tmp_path):
    path = tmp_path / "new" / "all.safetensors"
    save(ITEMS, path)
    found = load(path)
    _same(found, ITEMS)
    assert content_hash(found) == content_hash(ITEMS)
    assert load(path) and [p.name for p in path.parent.iterdir()] == ["all.safetensors"]
    save((), tmp_path / "none.safetensors")
    assert load(tmp_path / "none.safetensors") == ()


def test_leaves_are_read_to_the_host(tmp_path):
    (found,) = loads(dumps((edit("embed", Add(jnp.ones(8)), positions=jnp.array([9])),)))
    assert isinstance(found.op.vector, np.ndarray) and isinstance(found.positions, np.ndarray)
    found.op.vector[0] = 3.0


def test_the_hash_knows_values_dtypes_and_structure():
    base = edit("blocks.1.resid_post", Add(_V, strength=2.0), positions=[1], rows=[0])
    others = (
        dataclasses.replace(base, site="blocks.2.resid_post"),
        dataclasses.replace(base, op=Add(_V + np.float32(1e-6), strength=2.0)),
        dataclasses.replace(base, op=Add(_V.astype(np.float16), strength=2.0)),
        dataclasses.replace(base, op=Add(_V[None], strength=2.0)),
        dataclasses.replace(base, op=Add(_V, strength=2.000001)),
        dataclasses.replace(base, op=Add(_V, strength=2)),
        dataclasses.replace(base, op=Add(_V, strength=np.float16(2.0))),
        dataclasses.replace(base, op=Lerp(_V, 2.0)),
        dataclasses.replace(base, positions=None, layers=np.array([1], np.int32)),
        dataclasses.replace(base, positions=np.array([True])),
        dataclasses.replace(base, rows=np.array([1], np.int32), positions=np.array([0], np.int32)),
        dataclasses.replace(base, op=Backward(base.op)),
        dataclasses.replace(base, view=Heads(2)),
    )
    hashes = [content_hash(items) for items in ((base,), *((o,) for o in others), (base, base), ())]
    assert len(set(hashes)) == len(hashes)
    assert content_hash((others[0], base)) != content_hash((base, others[0]))


def test_the_hash_does_not_know_where_leaves_are():
    for dtype in (np.float32, np.float64, np.int64, bool):
        host = (edit("embed", Add(_V.astype(dtype)), positions=[1, 2]),)
        device = jax.device_put(host)
        split = jax.device_put(host[0].op, jax.devices()[5])
        assert content_hash(host) == content_hash(device)
        assert content_hash(host) == content_hash((dataclasses.replace(host[0], op=split),))
        assert content_hash(loads(dumps(host))) == content_hash(host)
        assert content_hash(loads(dumps(device))) == content_hash(host)


def test_lists_are_arrays():
    """As a pytree, a list would be many leaves, and another length another program."""
    listed = edit("embed", FromRow([1, 0, 2]), view=Latents(_DICTIONARY, [1], normalization=None))
    arrays = edit(
        "embed",
        FromRow(np.array([1, 0, 2])),
        view=Latents(_DICTIONARY, np.array([1]), normalization=None),
    )
    assert jax.tree.structure(listed) == jax.tree.structure(arrays)
    assert content_hash((listed,)) == content_hash((arrays,))
    (tap,) = loads(dumps((Tap("embed", view=Latents(_DICTIONARY, [1], normalization=None)),)))
    np.testing.assert_array_equal(tap.view.latents, np.array([1]))


def test_the_hash_is_the_same_in_other_processes():
    code = (
        "import numpy as np, jax.numpy as jnp\n"
        "from jaxdiff.edits import Add, Subspace, content_hash, edit\n"
        "view = Subspace(jnp.arange(8.).reshape(8, 1))\n"
        "print(content_hash((edit('embed', Add(1.5), view=view, positions=-1),)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = edit("embed", Add(1.5), view=Subspace(_V[:, None]), positions=-1)
    assert done.stdout.strip() == content_hash((here,))


_PLAIN = (edit("embed", Add(_V, 2.0), view=Heads(2)),)


def _changed(change, items=_PLAIN):
    """A file whose JSON is another one."""
    from safetensors import deserialize
    from safetensors.numpy import save as serialise

    data = dumps(items)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    content = json.loads(header["__metadata__"]["jaxdiff.edits"])
    arrays = {n: np.frombuffer(a["data"], np.float32) for n, a in deserialize(data)}
    change(content, arrays)
    return serialise(arrays, {"jaxdiff.edits": json.dumps(content)})


def _op(content):
    return content["items"][0]["fields"]["op"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c, a: c.update(version=2), "version 2 of the format, this jaxdiff reads 1"),
        (lambda c, a: _op(c).update({"class": "Evil"}), "'Evil' is no op, view or reducer"),
        (lambda c, a: _op(c).update({"class": "os.system"}), "'os.system' is no op"),
        (lambda c, a: _op(c)["fields"].update(sauce=None), "Add has no field sauce"),
        (lambda c, a: _op(c)["fields"].pop("vector"), "Add has no vector, which it needs"),
        (lambda c, a: _op(c)["fields"].update(vector={"eval": "1"}), "neither a number"),
        (lambda c, a: _op(c)["fields"].update(vector={"array": "x"}), "array 'x' is missing"),
        (lambda c, a: c["items"][0]["fields"].update(site=None), "site of Edit cannot be None"),
        (
            lambda c, a: c["items"][0]["fields"]["view"]["fields"].update(count="2"),
            "count of Heads cannot be '2'",
        ),
        (lambda c, a: a.update(more=_V), "more has no place"),
        (lambda c, a: c.update(items=[None]), "NoneType has no place"),
        (lambda c, a: c.update(items=[_op(c)]), "Add has no place"),
        (lambda c, a: c.update(items=3), "cannot be read"),
        (lambda c, a: c.pop("items"), "no file of edits"),
    ],
)
def test_strange_files_are_refused(change, says):
    with pytest.raises(JaxdiffError, match=says):
        loads(_changed(change), where="here")


def test_a_dictionary_of_no_known_kind_is_refused():
    def change(content, arrays):
        del arrays
        dictionary = _op(content)["fields"]["dictionary"]["fields"]
        dictionary["activation"] = "gelu"

    item = edit("embed", Reconstruct(_DICTIONARY, normalization=None))
    with pytest.raises(JaxdiffError, match="activation"):
        loads(_changed(change, (item,)))


def test_damage(tmp_path):
    path = tmp_path / "edits.safetensors"
    with pytest.raises(JaxdiffError, match="No such file") as error:
        load(path)
    assert error.value.where == str(path)
    save(ITEMS[:3], path)
    data = path.read_bytes()
    for broken in (b"", data[:40], data[:-8], b"\x00" * 64, b"{}", data[8:]):
        path.write_bytes(broken)
        with pytest.raises(JaxdiffError, match="no file of edits"):
            load(path)


def test_what_cannot_be_saved_is_named():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Mine:
        def __call__(self, value, at):
            return value

    with pytest.raises(JaxdiffError, match="Mine cannot be saved") as error:
        dumps((edit("embed", Backward(Mine())),))
    assert error.value.where == "0.op.op"
    with pytest.raises(JaxdiffError, match="Partial cannot be saved"):
        dumps((edit("embed", lambda value, at: value),))
    with pytest.raises(JaxdiffError, match="a traced leaf"):
        jax.jit(lambda v: dumps((edit("embed", Add(v)),)))(_V)
