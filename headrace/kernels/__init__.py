"""What computes a model: the chain of blocks behind one interface, natively or in torch, and the native sampler."""
