"""What accelerators can do at most, each figure with its source."""

from dataclasses import dataclass

_GIB = 2.0**30
_CLOUD = "https://docs.cloud.google.com/tpu/docs/"


@dataclass(frozen=True)
class Chip:
    """Peak figures of one chip.

    Attributes:
        name: As in `name:SHAPE`.
        about: What it is called.
        flops: bfloat16 products with float32 sums [flop/s].
        rounded_flops: float32 products at JAX's default precision, of rounded factors [flop/s].
        exact_flops: float32 products of factors that are not rounded [flop/s].
        memory: High-bandwidth memory [bytes].
        bandwidth: Of that memory [bytes/s].
        link: What the chip can send to other chips, in one direction, on all links [bytes/s].
        source: Where the figures are from.
        axes: Numbers in a shape: 2 or 3 for a mesh of TPUs, 1 for a count of GPUs.
        most: Chips in the largest slice that is offered.
        shapes: Shapes that are offered.
        devices: JAX devices in a chip.
        node: GPUs that the fast links join; TPUs need no other network inside a slice.
        network: What a GPU can send to other nodes [bytes/s].
    """

    name: str
    about: str
    flops: float
    rounded_flops: float
    exact_flops: float
    memory: float
    bandwidth: float
    link: float
    source: str
    axes: int
    most: int
    shapes: tuple[str, ...]
    devices: int = 1
    node: int | None = None
    network: float = 0.0

    @property
    def gpu(self) -> bool:
        """Whether it is a GPU, for which there is no compiler without one."""
        return self.node is not None

    @property
    def room(self) -> float:
        """Memory of a device [bytes]."""
        return self.memory / self.devices


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")


def _tpu(name, about, flops, memory, bandwidth, both_ways, most, shapes, devices=1, source=None):
    """Returns a TPU; figures as in Google's tables: TFLOP/s, GiB, GB/s, GB/s in both directions."""
    return Chip(
        name=name,
        about=about,
        flops=flops * 1e12,
        # The MXU multiplies bfloat16; a float32 product at highest precision is six of those.
        rounded_flops=flops * 1e12,
        exact_flops=flops * 1e12 / 6,
        memory=memory * _GIB,
        bandwidth=bandwidth * 1e9,
        link=both_ways / 2 * 1e9,
        source=source or f"{_CLOUD}{name}",
        axes=shapes[0].count("x") + 1,
        most=most,
        shapes=shapes,
        devices=devices,
    )


def _gpu(name, about, flops, float32, memory, bandwidth, both_ways, source):
    """Returns a GPU; units as in NVIDIA's tables (TFLOP/s without sparsity, GB, GB/s)."""
    return Chip(
        name=name,
        about=about,
        flops=flops * 1e12,
        # TF32 takes twice as long as bfloat16; exact products do not use the tensor cores.
        rounded_flops=flops * 1e12 / 2,
        exact_flops=float32 * 1e12,
        memory=memory * 1e9,
        bandwidth=bandwidth * 1e9,
        link=both_ways / 2 * 1e9,
        source=source,
        axes=1,
        most=16_384,
        shapes=("1", "2", "4", "8"),
        node=8,
        # One 400 Gb/s adapter a GPU, as in DGX and HGX systems of these generations.
        network=50e9,
    )


CHIPS = {
    chip.name: chip
    for chip in (
        # Six links of 50 GB/s each way: arXiv:2304.01433, table 4. The compiler takes its two
        # cores for two devices, with half of the memory each.
        _tpu(
            *("v4", "TPU v4", 275, 32, 1200, 600, 4096),
            *((*_DEEP, "8x16x16", "16x16x16"), 2),
            source=f"{_CLOUD}v4 and arXiv:2304.01433",
        ),
        _tpu("v5e", "TPU v5e", 197, 16, 819, 400, 256, _FLAT),
        _tpu(
            *("v5p", "TPU v5p", 459, 95, 2765, 1200, 6144),
            (*_DEEP, "8x16x16", "16x16x16", "16x16x24"),
        ),
        _tpu("v6e", "TPU v6e (Trillium)", 918, 32, 1638, 800, 256, _FLAT, source=f"{_CLOUD}tpu7x"),
        _tpu("tpu7x", "TPU7x (Ironwood)", 2307, 192, 7380, 1200, 9216, (*_DEEP, "8x16x16"), 2),
        _gpu(
            *("h100", "H100 SXM", 989.4, 66.9, 80, 3350, 900),
            "NVIDIA H100 datasheet (SXM), dense",
        ),
        _gpu(
            *("h200", "H200 SXM", 989.4, 66.9, 141, 4800, 900),
            "NVIDIA H200 datasheet (SXM), dense",
        ),
        _gpu(
            *("b200", "B200 (HGX)", 2250, 80, 180, 8000, 1800),
            "NVIDIA Blackwell architecture brief and DGX B200 datasheet (an eighth of it), dense",
        ),
    )
}
