"""What runs inside the watched process. It needs torch and the standard library alone, and imports nothing of ours by
an absolute name: the process may be another interpreter, and the user's modules may have any name."""
