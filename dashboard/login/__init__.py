"""The login in front of the pages, and the security headers of every answer."""
