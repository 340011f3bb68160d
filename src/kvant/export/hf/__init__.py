"""Unquantised Hugging Face folders."""
