"""A trained network as a folder, or a repository of a hub, that others can use."""
