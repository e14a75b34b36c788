"""Scores of the phases of the cell cycle, from the expression of published marker genes."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbraid.prepare.transforms import log1p, normalise_total, scale

logger = logging.getLogger("scbraid")

# Marker genes of Tirosh et al. 2016 (Science, doi 10.1126/science.aad0501): 43 of S, 54 of G2M.
_S = """
MCM5 PCNA TYMS FEN1 MCM2 MCM4 RRM1 UNG GINS2 MCM6 CDCA7 DTL PRIM1 UHRF1 MLF1IP HELLS RFC2 RPA2
NASP RAD51AP1 GMNN WDR76 SLBP CCNE2 UBR7 POLD3 MSH2 ATAD2 RAD51 RRM2 CDC45 CDC6 EXO1 TIPIN DSCC1
BLM CASP8AP2 USP1 CLSPN POLA1 CHAF1B BRIP1 E2F8
"""
_G2M = """
HMGB2 CDK1 NUSAP1 UBE2C BIRC5 TPX2 TOP2A NDC80 CKS2 NUF2 CKS1B MKI67 TMPO CENPF TACC3 FAM64A
SMC4 CCNB2 CKAP2L CKAP2 AURKB BUB1 KIF11 ANP32E TUBB4B GTSE1 KIF20B HJURP CDCA3 HN1 CDC20 TTK
CDC25C KIF2C RANGAP1 NCAPD2 DLGAP5 CDCA2 CDCA8 ECT2 KIF23 HMMR AURKA PSRC1 ANLN LBR CKAP5 CENPE
CTCF NEK2 G2E3 GAS2L3 CBX5 CENPA
"""
S_GENES, G2M_GENES = tuple(_S.split()), tuple(_G2M.split())
MIN_GENES = 5
_N_BINS = 25
# Cells whose expression is dense at a time.
_BLOCK = 2048


def phase_scores(counts: sp.csr_matrix, genes: pd.Index) -> np.ndarray | None:
    """Standardised S and G2M scores of every cell.

    On log1p of normalised counts, scaled gene by gene: the mean over the phase's genes less the
    mean over all genes of like expression (the same of 25 bins by mean), which the original draws
    50 a bin from. Gene names are compared without regard to case.

    Parameters
    ----------
    counts
        Shape (n_cells, n_genes).
    genes
        Their names.

    Returns
    -------
    ndarray or None
        float32 (n_cells, 2), mean 0 and deviation 1; None, with a warning, where fewer than 5 genes
        of a phase are there.
    """
    names = pd.Index(genes.astype(str).str.upper())
    logs = log1p(normalise_total(counts))
    means = np.asarray(logs.mean(axis=0)).ravel()
    bins = np.empty(len(names), np.int64)
    bins[np.argsort(means, kind="stable")] = np.arange(len(names)) * _N_BINS // len(names)
    genes_of: list[tuple[np.ndarray, np.ndarray]] = []
    for phase, markers in (("S", S_GENES), ("G2M", G2M_GENES)):
        own = np.flatnonzero(names.isin(markers) & (means > 0))
        if len(own) < MIN_GENES:
            logger.warning(
                "no cell-cycle scores: the input has %d of %d marker genes of phase %s, expected "
                "at least %d",
                len(own), len(markers), phase, MIN_GENES,
            )  # fmt: skip
            return None
        control = np.setdiff1d(np.flatnonzero(np.isin(bins, bins[own])), own)
        genes_of.append((own, control))
    scaled = scale(logs)
    scores = np.empty((len(genes_of), logs.shape[0]))
    for first in range(0, logs.shape[0], _BLOCK):
        rows = slice(first, first + _BLOCK)
        block = scaled.sparse[rows].toarray() + scaled.offset
        for found, (own, control) in zip(scores, genes_of, strict=True):
            reference = block[:, control].mean(axis=1) if len(control) else 0.0
            found[rows] = block[:, own].mean(axis=1) - reference
    standard = [(score - score.mean()) / (score.std() or 1.0) for score in scores]
    return np.stack(standard, axis=1).astype(np.float32)
