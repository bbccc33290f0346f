"""`klaxon preflight` and `klaxon compare-engines`: probes of a running engine before a run spends GPUs on it."""
