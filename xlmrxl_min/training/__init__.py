"""Train a model: the training loop, masking, tasks, and the recipes of the bundled checkpoints."""
