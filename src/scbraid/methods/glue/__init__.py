"""GLUE: graph-linked unified embedding (Cao & Gao 2022, doi 10.1038/s41587-022-01284-4)."""
