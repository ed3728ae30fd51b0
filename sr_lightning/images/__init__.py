"""Image files: training images as uint8 planes, users' photos with their metadata."""
