"""Model diffing in JAX: what did fine-tuning change inside this language model?"""
