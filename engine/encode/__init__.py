"""Record batches to files.

``parquet``      columns to columns
``json_lines``   assembled by column; nested columns of CSV too
``csv``          written by Arrow
``avro``         blocks assembled by column, in a container by fastavro
``bson``         the bytes of the events or documents themselves
``pieces``       what these share: a few rows at a time
``compression``  for formats without compression of their own
``formats``      chooses the format by a key's ending: the key decides, not the configuration
"""
