"""Record batches to files.

``parquet``      columns to columns
``rows``         the formats that are written row by row: JSON lines, CSV, Avro, BSON
``compression``  for those that have none of their own
``formats``      which of them a key's ending means: the key, not the configuration, decides
"""
