"""The parts of bench_training.py: who trains, on which images, and what is written about it."""
