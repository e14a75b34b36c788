"""SAILERX and SAILER: chromosome-blocked variational autoencoders of chromatin accessibility."""
