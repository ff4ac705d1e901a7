"""Sparse row gradients with the step of Adam fused in."""

from jaxdiff.kernels.row_adam.xla import row_adam

__all__ = ["row_adam"]
