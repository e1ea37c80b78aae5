"""The report of a run: one page that needs no other file and no network."""
