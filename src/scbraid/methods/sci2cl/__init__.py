"""Intra- and inter-omics contrastive learning of paired cells (scI2CL, Liu et al. 2025)."""
