"""Where the trainer's own metrics come from: JSONL files, W&B run folders, the W&B API, TensorBoard event files."""
