"""Publish and subscribe, and who does what among several servers. Liveness alone: losing all of it loses no data."""

from server.broker.memory import Broker, MemoryBroker
from server.broker.message import Message

__all__ = ["Broker", "MemoryBroker", "Message"]
