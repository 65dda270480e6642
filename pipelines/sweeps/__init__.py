"""Sweeps: many runs that differ in some settings and seeds, wherever they are carried out."""
