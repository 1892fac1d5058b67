"""Who may do what: tokens for programs, a login cookie for browsers."""
