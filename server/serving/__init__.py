"""Applications on sockets: binding, serving, and ending in order."""
