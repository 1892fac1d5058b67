"""Spikewatch in training frameworks: one module for each, which imports its framework and no other.

from client_sdk.integrations.huggingface import SpikewatchCallback                     # transformers, TRL
from client_sdk.integrations.lightning import SpikewatchCallback, SpikewatchLogger
from client_sdk.integrations.accelerate import SpikewatchTracker
"""
