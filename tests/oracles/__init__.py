"""What the tests compare kvant with: ggml itself, textbook searches, and weights to try them on."""
