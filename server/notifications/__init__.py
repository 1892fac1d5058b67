"""From the outbox to people: who is told what, in which words, and over which wire."""
