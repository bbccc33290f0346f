"""Seeded simulations of mismatch streams, shared by tests and benchmarks."""
