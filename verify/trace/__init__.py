"""Runs any training script and records what it really does; rules judge the record."""
