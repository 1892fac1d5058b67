"""The queue on disk between `log` and the server: a directory of spool files that the training process writes and the
sender reads.
"""
