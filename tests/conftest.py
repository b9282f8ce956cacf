"""Settings for every test."""

import os

# Two workers share two cores; small networks gain nothing from threads and lose much when they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
