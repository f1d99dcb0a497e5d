"""Two-phase semi-supervised adversarial training."""
