"""Pages that need no other file and no network: the parts that all of them share."""
