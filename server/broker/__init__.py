"""Publish and subscribe, and who does what among several servers. Liveness alone: losing all of it loses no data."""

from server.broker.live_message import LiveMessage
from server.broker.memory import Broker, MemoryBroker

__all__ = ["Broker", "LiveMessage", "MemoryBroker"]
