"""The straight line of a batch: commit, acknowledge, detect, store what was found, publish."""
