"""Emit a .pte: one delegate a piece, one packed copy of every weight, the contract of ExecuTorch's stock runner."""
