"""Where tests of training run: $FLAMERT_DEVICE, the CPU if it says nothing. On GPUs float32 is not TF32, sums keep their order."""

import os

DEVICE = os.environ.get("FLAMERT_DEVICE", "cpu")
PLACED = {"device": DEVICE, "allow_tf32": False, "deterministic": True}
"""Options of `load`."""
