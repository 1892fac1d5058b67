"""The forms of the pages: their fields, and what is done with what people enter."""
