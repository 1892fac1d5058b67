"""Notifications: which are sent and when, their text, and their delivery to channels."""
