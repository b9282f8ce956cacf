"""Architectures, and `build_model` to choose one by name."""
