"""Say why a training failed."""

from runner.config.schema import Config
from runner.errors import is_out_of_memory, one_line


def why_failed(error: Exception, config: Config) -> str:
    """Format an error that ended the training, in one line."""
    name, text = type(error).__name__, one_line(error)
    if is_out_of_memory(error):
        trainer = config.trainer
        return (
            f"RunError: out of memory with trainer.batch_size={trainer.largest_batch} ({name}); "
            f"reduce it and increase trainer.accumulate_grad_batches, now "
            f"{trainer.accumulate_grad_batches}, to train the same"
        )
    return f"{name}: {text}"
