"""Parts that a config names: layers, losses, metrics, optimizers."""
