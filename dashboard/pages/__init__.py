"""The pages: what is on them, how their parts are made from the API's answers, and how they stay live."""
