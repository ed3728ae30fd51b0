"""Reading and writing of trained weights: checkpoints of this project, and files of other projects."""
