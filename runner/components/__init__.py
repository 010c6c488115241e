"""What a config names: layers, losses, metrics, optimizers."""
