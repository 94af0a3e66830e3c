"""L2: the networks. They map tensors to tensors; they compute no loss and read no files."""
