"""Reading and writing trained weights: checkpoints of this project and files of others."""
