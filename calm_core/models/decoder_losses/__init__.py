"""Losses of what the frozen decoder makes of a head's samples.

All share one interface, `base.DecoderLoss`; suffixes of names as in `calm_core.models`. They hold no weights: a model
trained with one is saved, loaded, imported and exported like any other.
"""
