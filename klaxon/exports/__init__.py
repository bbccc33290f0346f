"""The numbers of every batch, handed on to trackers: W&B and TensorBoard (docs/monitoring.md)."""
