"""The disk format of records, and the input pipeline that makes batches from them."""
