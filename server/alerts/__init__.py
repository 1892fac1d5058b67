"""Alerts: the incidents that people act on, made from the findings of the detectors."""
