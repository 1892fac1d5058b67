"""Plain rules that other programs ship or papers propose: one file for each, and their list."""
