"""Where tests of training run: $FLAMERT_DEVICE, else the CPU. On GPUs float32 is not TF32 there, and sums keep their order."""

import os

DEVICE = os.environ.get("FLAMERT_DEVICE", "cpu")
PLACED = {"device": DEVICE, "allow_tf32": False, "deterministic": True}
"""Options of `load`."""
