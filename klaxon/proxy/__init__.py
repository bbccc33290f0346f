"""`klaxon proxy`: forwards an engine's traffic unchanged and reports the generations that pass by."""
