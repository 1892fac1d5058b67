"""The queue on disk between `log` and the server: a directory of files, written by the training, read by the sender."""
