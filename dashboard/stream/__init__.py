"""The live connection of open pages: what a browser shows, how its page is refreshed and at what pace."""
