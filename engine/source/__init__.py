"""What is read: change streams as raw BSON replies. The only room that imports pymongo's client."""
