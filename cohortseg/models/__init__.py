"""The networks. Axes are B C H W; a forward pass returns logits, never probabilities."""
