"""Access to object stores: how one is reached, how long requests take, and what its errors mean."""
