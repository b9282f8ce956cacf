import subprocess
import sys

# 4 million numbers: more than one thread works on them.
PRODUCTS = """
import torch
from engine.device import pick_device
pick_device("cpu")
print(torch.full((1 << 22,), 1e-38).mul_(0.1).count_nonzero().item(), torch.set_flush_denormal(True))
"""


def test_every_thread_takes_tiny_numbers_for_zero():
    output = subprocess.run([sys.executable, "-c", PRODUCTS], capture_output=True, text=True, check=True).stdout
    count, can_flush = output.split()
    assert int(count) == 0 or can_flush == "False"
