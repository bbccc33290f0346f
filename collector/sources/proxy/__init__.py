"""What inference engines answer over HTTP, read as rollouts: one small dialect a file, all of them in `dialects.py`."""
