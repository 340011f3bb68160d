"""kvant."""
