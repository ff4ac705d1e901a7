"""Kernels of jaxdiff, installed as `jaxdiff.kernels`; each op beside its XLA definition.

Hugging Face publishes a package called `kernels` that transformers probes for. When a checkout is
first on `sys.path` this folder answers that probe, so the module stays light, imports nothing of
jaxdiff, and carries a version that transformers reads as too old.
"""

__version__ = "0.0.0"
