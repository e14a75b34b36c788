"""Building blocks on tensors: likelihoods, sparse products, encoders, edge sampling."""
