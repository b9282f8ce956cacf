"""The verifier: proves that a PyTorch model or training run does what it claims. Importable without the kit."""
