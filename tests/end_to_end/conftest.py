"""The browser of the end-to-end tests."""

from tests.support.browser import browser, context

__all__ = ["browser", "context"]
