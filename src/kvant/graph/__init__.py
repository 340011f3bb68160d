"""A model as a small graph: traced once by its architecture, folded by everything else."""
