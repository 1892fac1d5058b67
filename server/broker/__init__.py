"""Live messages and leases among several servers. They concern liveness alone: losing all of them loses no data."""

from server.broker.live_message import LiveMessage
from server.broker.memory import Broker, MemoryBroker

__all__ = ["Broker", "LiveMessage", "MemoryBroker"]
