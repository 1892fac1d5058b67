"""From what the detectors hold to be true to alerts that people act on."""
