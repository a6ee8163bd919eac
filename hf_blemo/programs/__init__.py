"""What the training programs share: settings, checkpoints, tables and figures."""
