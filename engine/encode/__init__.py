"""Record batches to files.

``parquet``      columns to columns
``rows``         the formats written row by row: JSON lines, CSV, Avro, BSON
``compression``  for formats without compression of their own
``formats``      chooses the format by a key's ending: the key decides, not the configuration
"""
