"""Weighted sums of rows, group by group: the decoder of sparse codes, and their gradients."""

from jaxdiff.kernels.weighted_gather.xla import weighted_gather

__all__ = ["weighted_gather"]
