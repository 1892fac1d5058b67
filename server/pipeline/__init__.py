"""The path of a batch behind its socket: commit it, publish it, run the detectors and store what they conclude."""
