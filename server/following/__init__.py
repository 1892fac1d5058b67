"""Logs that grow: reads what trainings append to them, and sends it to a server as a training process would.

The followed file is the queue: what the server has not acknowledged is read again. Nothing here touches the database.
"""
