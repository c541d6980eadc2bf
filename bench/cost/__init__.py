"""What kernels cost, read from their machine code and from counts of what they do."""
