"""Folders for Apple's MLX: what mlx-lm and mlx-swift load."""
