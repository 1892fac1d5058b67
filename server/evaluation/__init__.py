"""Evaluation of the detectors on recorded runs: recordings, the labels of their spikes, alarms and scores."""
