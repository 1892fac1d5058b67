"""The commands of ``spikewatch``, grouped by what they work on; `server.cli` puts them together."""
