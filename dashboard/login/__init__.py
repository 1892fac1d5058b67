"""Who looks: the login in front of the pages, and the headers that bind browsers."""
