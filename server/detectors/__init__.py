"""Detectors: pure functions of one writer's stream of samples. No I/O, no clock, no randomness."""
