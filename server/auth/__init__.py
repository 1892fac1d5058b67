"""Authentication and authorization: tokens for programs, login cookies for browsers."""
