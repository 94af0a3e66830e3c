"""L2: the networks. No loss, no training, no files: a model maps tensors to tensors."""
