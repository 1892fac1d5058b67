"""How good the detectors are: recorded runs, the labels of their spikes, and the scores of what was said about them."""
