"""Where tests of training run: $FLAMERT_DEVICE, the CPU if it says nothing. On a GPU float32 is float32, not TF32."""

import os

DEVICE = os.environ.get("FLAMERT_DEVICE", "cpu")
PLACED = {"device": DEVICE, "allow_tf32": False}
"""Options of `load`."""
