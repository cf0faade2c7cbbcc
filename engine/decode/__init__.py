"""From BSON bytes to Arrow columns.

``cursor``   the vector of cursors: locates every value of many documents, field by field
``columns``  values of one field, for all rows at once, as an Arrow array
``schema``   the types of fields: settled by the first values, then kept
``json``     relaxed Extended JSON for what has no column of its own
``event``    change events: the metadata columns, and the document inside
``rowwise``  the row-by-row decoder, for what no vector step can handle; also the reference
``decoder``  all of it together: a reply's events to one record batch per collection
"""
