"""Whether a run's store keeps up with its training."""

from pathlib import Path

from jaxdiff.activations import Store
from jaxdiff.config import RunConfig
from jaxdiff.mesh import make_mesh
from jaxdiff.pipeline._train import store_source
from jaxdiff.training.throughput import Throughput, measure


def bench_feed(config: RunConfig, store: Path | None, *, seconds: float) -> Throughput:
    """Measures a store against the steps of all dictionaries of a config, and prints them.

    Args:
        config: The run.
        store: Folder of a store; that of the run's training split when None.
        seconds: Time for each of three measurements [seconds].

    Raises:
        JaxdiffError: If there is no such store, or the mesh does not fit.
    """
    opened = Store.open(store or config.out / "main" / "harvest" / "train")
    found = measure(
        tuple(config.dictionaries.values()),
        config.train,
        store_source(opened, config),
        seconds=seconds,
        mesh=make_mesh(config.mesh.data, config.mesh.latent),
    )
    megabytes = opened.row_bytes / 1e6
    for name, rows in (
        ("the store deals out", found.source),
        ("the steps eat", found.step),
        ("training gets", found.together),
    ):
        print(f"{name:20} {rows:12,.0f} rows/s {rows * megabytes:10,.1f} MB/s of the store")
    print(f"{'waiting for data':20} {found.waited:12.1%} of the time of the devices")
    ratio = found.source / found.step
    print(
        f"The store is the limit: it gives {ratio:.2f} of what the steps eat."
        if found.limit == "source"
        else f"The steps are the limit: the store gives {ratio:.1f} times what they eat."
    )
    return found
