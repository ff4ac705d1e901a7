"""Pytrees of known classes as JSON and arrays, and back: a registry, and nothing else."""

import dataclasses
import functools
import typing
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxdiff.dictionaries import Dictionary, Normalization
from jaxdiff.dictionaries.dictionary import LEAVES
from jaxdiff.edits import around, latents, ops, reducers, sources, views
from jaxdiff.edits._edit import Edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import Tap

Registry = Mapping[str, type]

REGISTRY: Registry = {
    kind.__name__: kind
    for kind in (
        *(Edit, Tap, Dictionary, Normalization),
        *(ops.Set, ops.Add, ops.Scale, ops.Lerp, ops.Clamp, ops.ToMean, ops.Noise, ops.LowRank),
        *(ops.Skip, around.PerLayer, around.Backward),
        *(sources.Patch, sources.FromRow, sources.FromWorld),
        *(views.Heads, views.Subspace, latents.Latents, latents.Reconstruct),
        *(reducers.Last, reducers.Mean, reducers.Norm, reducers.TopK, reducers.Project),
        reducers.Chain,
    )
}


def encode(items: Sequence[Any], kinds: Registry) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Returns JSON, and the arrays that it refers to.

    Raises:
        JaxdiffError: If a part is none of the registry's classes, or no array.
    """
    arrays: dict[str, np.ndarray] = {}
    return [_encode(item, f"{i}", arrays, kinds) for i, item in enumerate(items)], arrays


def decode(
    tree: Any, arrays: Mapping[str, np.ndarray], kinds: Registry, of: tuple[type, ...]
) -> tuple[Any, ...]:
    """Inverts `encode`; the items are of some of the classes only.

    Raises:
        Refused: If a class or field is not known, or an array is missing or one too many.
    """
    used: set[str] = set()
    try:
        items = tuple(_decode(item, arrays, used, kinds) for item in tree)
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise Refused(error) from None
    unused = sorted(set(arrays) - used)
    strange = [type(item).__name__ for item in items if not isinstance(item, of)]
    if unused or strange:
        raise Refused(f"{', '.join(unused + strange)} has no place in it")
    return items


class Refused(Exception):
    """What is wrong with a file, in words."""


def _encode(value: Any, path: str, arrays: dict[str, np.ndarray], kinds: Registry) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):
        # JSON has no infinities, and whether a number is an int matters to programs.
        return {"int": value} if isinstance(value, int) else {"float": repr(float(value))}
    if isinstance(value, tuple):
        return [_encode(part, f"{path}.{i}", arrays, kinds) for i, part in enumerate(value)]
    if dataclasses.is_dataclass(value) and kinds.get(type(value).__name__) is type(value):
        fields = {
            field.name: _encode(getattr(value, field.name), f"{path}.{field.name}", arrays, kinds)
            for field in dataclasses.fields(value)
        }
        return {"class": type(value).__name__, "fields": fields}
    if isinstance(value, (jax.Array, np.ndarray, np.generic, list)):
        return _encode_array(value, path, arrays)
    raise JaxdiffError(
        f"{type(value).__name__} cannot be saved: it is no op, view or reducer of jaxdiff, and no "
        "array",
        where=path,
        fix=f"these can be: {', '.join(kinds)}",
    )


def _encode_array(value: Any, path: str, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    if isinstance(value, Tracer):
        raise JaxdiffError("a traced leaf has no value to be saved", where=path)
    key = {}
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        key = {"key": str(jax.random.key_impl(value))}
        value = jax.random.key_data(value)
    found = np.asarray(value)
    # Programs round numbers of the host so; it must not matter where a leaf is.
    dtype = jax.dtypes.canonicalize_dtype(found.dtype)
    arrays[path] = np.asarray(found, dtype, order="C")
    return {"array": path, **key}


def _decode(tree: Any, arrays: Mapping[str, np.ndarray], used: set[str], kinds: Registry) -> Any:
    if tree is None or isinstance(tree, (bool, str)):
        return tree
    if isinstance(tree, list):
        return tuple(_decode(part, arrays, used, kinds) for part in tree)
    kind = frozenset(tree) if isinstance(tree, dict) else frozenset()
    if kind == {"int"} and type(tree["int"]) is int:
        return tree["int"]
    if kind == {"float"} and isinstance(tree["float"], str):
        return float(tree["float"])
    if kind in ({"array"}, {"array", "key"}):
        return _decode_array(tree, arrays, used)
    if kind == {"class", "fields"}:
        return _decode_object(tree["class"], tree["fields"], arrays, used, kinds)
    raise Refused(f"{str(tree)[:80]!r} is neither a number, an array nor an object")


def _decode_array(tree: dict, arrays: Mapping[str, np.ndarray], used: set[str]) -> Any:
    name = tree["array"]
    if name not in arrays:
        raise Refused(f"the array {name!r} is missing")
    used.add(name)
    if "key" not in tree:
        return arrays[name]
    return jax.random.wrap_key_data(jnp.asarray(arrays[name]), impl=tree["key"])


def _decode_object(
    name: Any,
    fields: Any,
    arrays: Mapping[str, np.ndarray],
    used: set[str],
    kinds: Registry,
) -> Any:
    if not isinstance(name, str) or name not in kinds:
        raise Refused(f"{name!r} is no op, view or reducer; these are: {', '.join(kinds)}")
    if not isinstance(fields, dict):
        raise Refused(f"the fields of {name} are no object")
    kind = kinds[name]
    known = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise Refused(f"{name} has no field {', '.join(unknown)}")
    missing = [n for n, f in known.items() if n not in fields and f.default is dataclasses.MISSING]
    if missing:
        raise Refused(f"{name} has no {', '.join(missing)}, which it needs")
    values = {field: _decode(part, arrays, used, kinds) for field, part in fields.items()}
    for field, value in values.items():
        if known[field].metadata.get("static") and not _fits(value, _hints(kind)[field]):
            raise Refused(f"{field} of {name} cannot be {value!r}")
    if kind is Dictionary:
        # Its functions take device arrays only; leaves of other classes may stay on the host.
        arrays = {n: values[n] for n in LEAVES if values.get(n) is not None}
        values |= {field: jnp.asarray(array) for field, array in arrays.items()}
    return kind(**values)


@functools.lru_cache(maxsize=64)
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    """Returns whether a static field can have this value: a plain one, of its annotation."""
    if isinstance(hint, UnionType) or typing.get_origin(hint) is typing.Union:
        return any(_fits(value, each) for each in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        each = typing.get_args(hint)[0]
        return type(value) is tuple and all(_fits(part, each) for part in value)
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    allowed = (int, float) if hint is float else (NoneType if hint is None else hint,)
    return type(value) in (allowed if isinstance(allowed, tuple) else (allowed,))
