"""Keeps XLA from a fault of its CPU compiler that gives wrong numbers and no error."""

import os
import re
from importlib import metadata

_FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def avoid_wrong_sums() -> None:
    """Adds a flag to XLA_FLAGS where jaxlib is a version that needs it.

    In 0.10.2 to 0.11.0, a sum that is fused with what it sums may be wrong from 2^18 numbers on,
    as in `jax.vmap` of a gradient through a norm (jax issue 39103). Without these fusions it is
    right, and a forward pass of GPT-2 small takes the same time (108 ms either way for 4 x 16
    tokens, 2 cores, jaxlib 0.10.2, 2026-11-25). XLA reads the flag when JAX first computes
    something. Whoever sets it has chosen, and keeps what they chose.
    """
    version = tuple(map(int, re.findall(r"\d+", metadata.version("jaxlib"))[:3]))
    flags = os.environ.get("XLA_FLAGS", "")
    if (0, 10, 2) <= version <= (0, 11, 0) and _FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}=-reduce".strip()
