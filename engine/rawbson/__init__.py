"""BSON bytes as received from the server: locates documents and elements without decoding them."""
