"""Reading from MongoDB: change streams and collections, as raw BSON replies."""
