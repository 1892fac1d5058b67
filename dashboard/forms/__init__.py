"""Forms of the pages: their fields, the actions that browsers send and the dispatcher that runs them."""
