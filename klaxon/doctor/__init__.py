"""Why do I see no data? The chain from the tap to the alerts, link by link: live.py judges a running daemon, down.py one that is not."""
