"""Folders for vLLM: compressed-tensors, which transformers loads too."""
