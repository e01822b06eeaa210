"""What a Trainer is made of: steps as graphs over state, plans of them, batches, and the loop around."""
