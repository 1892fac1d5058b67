"""The frame around every page: declarations of pages, routing, navigation and the callbacks built from them."""
