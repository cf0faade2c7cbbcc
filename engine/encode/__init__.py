"""Record batches to files.

``parquet``      columns to columns
``json_lines``, ``csv``, ``avro``, ``bson``  the formats of rows, assembled by column
``pieces``       what these share
``compression``  for formats without compression of their own
``formats``      chooses the format by a key's ending: the key decides, not the configuration
"""
