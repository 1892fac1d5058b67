"""`spikewatch demo`: three real trainings, each in its own process, watched by a real server.

The one room of the server that uses the SDK's public face: the trainings are the product's own first users.
"""
