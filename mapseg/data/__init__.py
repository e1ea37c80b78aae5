"""The disk format of records, and the input pipeline from it to batches."""
