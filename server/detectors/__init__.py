"""Detectors of training trouble: pure functions of one writer's stream of samples, without I/O, clock or randomness."""
