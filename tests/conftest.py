"""Settings for every test: 8 fake CPU devices, strict promotion, explicit keys."""

import os
import socket
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")

import jax
import jaxtyping
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Every compiled program holds memory maps, and a process that has 65530 of them crashes."""
    yield
    jax.clear_caches()


def _in_processes(count, words, logs):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    files = [(logs / f"log-{count}-{i}").open("w+") for i in range(count)]
    children = [
        subprocess.Popen([sys.executable, *words(i, port)], stdout=file, stderr=file)
        for i, file in enumerate(files)
    ]
    try:
        codes = [child.wait(timeout=300) for child in children]
    finally:
        for child in children:
            child.kill()
        text = [(file.seek(0), file.read(), file.close())[1] for file in files]
    return codes, text


@pytest.fixture(scope="session")
def in_processes():
    """Runs `python words(i, port)` in several processes; returns exit codes and what they said."""
    return _in_processes


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def untyped():
    """What a user meets who runs without the checks of types that tests have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def few_classes(monkeypatch):
    """Lists are cut into few classes of segments, which compile in a third of the time."""
    monkeypatch.setattr("jaxdiff.kernels.segments.TILE", 4)
    monkeypatch.setattr("jaxdiff.kernels.segments._WIDTHS", (1, 2, 4))
