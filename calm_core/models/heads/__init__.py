"""Generative heads: noise and a hidden state to a sample of the next chunk's latent (arXiv 2510.27688).

All share one interface, `base.Head`; suffixes of names as in `calm_core.models`.
"""
