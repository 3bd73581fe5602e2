"""The offline half: segments become the lake, its rollups, and the ledger."""
