"""`spikewatch check`: whether runs are as they should be, as an exit code and a report of one screen."""
