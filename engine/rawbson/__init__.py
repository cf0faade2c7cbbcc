"""BSON bytes as they come from the server: where documents and elements lie, without decoding them."""
