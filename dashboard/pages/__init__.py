"""The pages of the dashboard. Each module declares one or more values of `Page`; `registry` lists them."""
