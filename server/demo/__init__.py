"""The demo: `spikewatch demo` runs three real trainings in their own processes, watched by a real server.

This is the only room of the server that uses the public API of the SDK.
"""
