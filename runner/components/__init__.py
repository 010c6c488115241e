"""The parts that a config can name: layers, losses, metrics, optimizers."""
